project_id = "example-project"
location   = "europe-west4"
image_uri  = "europe-docker.pkg.dev/example/medport/serving@sha256:0000000000000000000000000000000000000000000000000000000000000000"

# Read the terms first.
accept_eula = true
