output "medport" {
  description = "What a deployment needs: endpoints by name, accounts, bucket, image mirror, key."
  value = {
    deployer     = module.foundation.deployer
    endpoints    = { for name, endpoint in module.endpoint : name => endpoint.endpoint }
    kms_key_name = module.foundation.kms_key_name
    location     = var.location
    project_id   = var.project_id
    registry     = module.foundation.registry
    serving      = module.foundation.serving
    weights      = module.foundation.weights
  }
}

output "observability" {
  description = "Alerts, channels, log metrics and budget, by resource name."
  value       = module.observability.observability
}

output "private_network" {
  description = "Address, host name and readiness of each private endpoint; empty: there is none."
  value       = length(module.private_network) == 0 ? {} : module.private_network[0].private_network
}
