# Copy to backend.hcl; the values are the output `backend` of roots/state-bootstrap.
bucket             = "example-project-medport-state"
prefix             = "medport"
kms_encryption_key = "projects/example-project/locations/europe-west4/keyRings/medport-state/cryptoKeys/state"
