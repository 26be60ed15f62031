project_id = "example-project"
location   = "europe-west4"
users      = ["group:platform@example.org"]

labels = { team = "imaging" }
