# The same endpoint module as in the cloud, against a local control plane. There is no foundation: its services would
# call Google.
terraform {
  backend "local" {}
}

module "endpoint" {
  source   = "../../modules/endpoint"
  for_each = var.endpoints

  access              = { mode = each.value.mode }
  deletion_protection = var.deletion_protection
  description         = each.value.description
  display_name        = coalesce(each.value.display_name, each.key)
  endpoint_id         = each.value.id
  labels              = each.value.labels
  location            = var.location
  project_id          = var.project_id

  # There are no keys of Google's here; the site's disk encryption stands in for them.
  warn_without_key = false
}
