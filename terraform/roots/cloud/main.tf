# Everything that endpoints stand on, and their shells. Models, deployed models and traffic are the deployment tool's.
terraform {
  # Bucket, prefix and key come from a file: terraform init -backend-config=backend.hcl
  backend "gcs" {}
}

locals {
  private = { for name, endpoint in var.endpoints : name => endpoint if endpoint.access.mode == "private" }
  logging = anytrue([for endpoint in values(var.endpoints) : endpoint.request_logging != null]) || var.audit != null
}

module "foundation" {
  source = "../../modules/foundation"

  additional_services    = local.logging ? ["bigquery.googleapis.com"] : []
  deletion_protection    = var.deletion_protection
  deployer_impersonators = var.deployer_impersonators
  key                    = var.key
  location               = var.location
  prefix                 = var.prefix
  project_id             = var.project_id
  registry               = var.registry
  secret_values          = var.secret_values
  secrets                = var.secrets
  weights_bucket         = var.weights_bucket
}

module "endpoint" {
  source   = "../../modules/endpoint"
  for_each = var.endpoints

  access              = each.value.access
  deletion_protection = var.deletion_protection
  description         = each.value.description
  display_name        = coalesce(each.value.display_name, each.key)
  endpoint_id         = each.value.id
  kms_key_name        = module.foundation.kms_key_name
  labels              = each.value.labels
  location            = var.location
  project_id          = var.project_id
  request_logging     = each.value.request_logging
  warn_without_key    = false
}

module "private_network" {
  source = "../../modules/private-network"
  count  = length(local.private) == 0 ? 0 : 1

  dns_domain    = var.private_network.dns_domain
  endpoints     = { for name, endpoint in local.private : name => { service_attachment = lookup(var.private_network.service_attachments, name, null) } }
  ip_cidr_range = var.private_network.ip_cidr_range
  location      = var.location
  network_id    = var.private_network.network_id
  prefix        = var.prefix
  project_id    = var.project_id

  # Its address needs the compute service.
  depends_on = [module.foundation]
}

module "observability" {
  source = "../../modules/observability"

  audit = var.audit == null ? null : {
    data_access    = var.audit.data_access
    kms_key_name   = module.foundation.kms_key_name
    retention_days = var.audit.retention_days
  }
  budget = var.budget == null ? null : {
    billing_account = var.budget.billing_account
    currency        = var.budget.currency
    monthly_amount  = var.budget.monthly_amount
    project_number  = module.foundation.project_number
  }
  deletion_protection   = var.deletion_protection
  deployer              = module.foundation.deployer
  endpoints             = { for name, endpoint in module.endpoint : name => endpoint.name }
  location              = var.location
  notification_channels = var.notification_channels
  notification_emails   = var.notification_emails
  prefix                = var.prefix
  project_id            = var.project_id
  thresholds            = var.thresholds
}
