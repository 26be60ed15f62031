output "medport" {
  description = "What a deployment needs, in the form of the cloud root; what is not there is null."
  value = {
    deployer     = null
    endpoints    = { for name, endpoint in module.endpoint : name => endpoint.endpoint }
    kms_key_name = null
    location     = var.location
    project_id   = var.project_id
    registry     = null
    serving      = null
    weights      = null
  }
}
