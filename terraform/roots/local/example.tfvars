project_id = "onprem-project"
location   = "europe-west4"

endpoints = {
  medgemma = {
    id     = "4100000001"
    labels = { model = "medgemma-4b-it" }
  }
  medsiglip = {
    id     = "4100000002"
    labels = { model = "medsiglip-448" }
  }
}
