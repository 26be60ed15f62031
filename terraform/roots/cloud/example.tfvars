project_id        = "example-project"
location          = "europe-west4"
allowed_locations = ["europe-west3", "europe-west4"]

labels = { team = "imaging" }

endpoints = {
  medgemma = {
    id     = "4100000001"
    labels = { model = "medgemma-4b-it" }
  }
  medsiglip = {
    id     = "4100000002"
    access = { mode = "private", allowed_projects = ["example-project"] }
    labels = { model = "medsiglip-448" }
  }
}

deployer_impersonators = ["group:platform@example.org"]
notification_emails    = ["oncall@example.org"]

# The container is made; its value is added outside of Terraform.
secrets = { hub-token = {} }

audit = {}
