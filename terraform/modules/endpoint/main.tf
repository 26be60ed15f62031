# The shell of an endpoint: its number, name, key, way in and logging. What serves behind it (deployed models, the
# traffic between them, the inference timeout) belongs to the deployment tool, so that a canary step is no drift here.
locals {
  log_dataset = "medport_requests_${var.endpoint_id}"
  log_table   = var.request_logging == null ? null : "bq://${var.project_id}.${local.log_dataset}.requests"
  private     = var.access.mode == "private"

  # projects/P/locations/LOCATION/keyRings/R/cryptoKeys/K
  key_location = var.kms_key_name == null ? null : split("/", var.kms_key_name)[3]
}

resource "google_vertex_ai_endpoint" "this" {
  project      = var.project_id
  name         = var.endpoint_id
  location     = var.location
  display_name = var.display_name
  description  = var.description
  labels       = var.labels

  # Not `region`: it is not read back, and a configuration that sets it would replace an imported endpoint.
  # The API refuses both at once, so the flag is left out where the way in is Private Service Connect.
  dedicated_endpoint_enabled = local.private ? null : var.access.mode == "dedicated"

  dynamic "private_service_connect_config" {
    for_each = local.private ? [var.access] : []

    content {
      enable_private_service_connect = true
      project_allowlist              = sort(private_service_connect_config.value.allowed_projects)

      dynamic "psc_automation_configs" {
        for_each = private_service_connect_config.value.automation

        content {
          project_id = psc_automation_configs.key
          network    = psc_automation_configs.value
        }
      }
    }
  }

  dynamic "encryption_spec" {
    for_each = var.kms_key_name == null ? [] : [var.kms_key_name]

    content {
      kms_key_name = encryption_spec.value
    }
  }

  dynamic "predict_request_response_logging_config" {
    for_each = var.request_logging == null ? [] : [var.request_logging]

    content {
      enabled       = true
      sampling_rate = predict_request_response_logging_config.value.sampling_rate

      bigquery_destination {
        output_uri = local.log_table
      }
    }
  }

  # A variable, which `prevent_destroy` cannot take. It is read from the state: lifting it takes one apply first.
  deletion_policy = var.deletion_protection ? "PREVENT" : "DELETE"

  timeouts {
    create = "30m"
    update = "20m"
    delete = "30m"
  }

  lifecycle {
    ignore_changes = [traffic_split]

    precondition {
      condition     = var.request_logging == null || var.kms_key_name != null
      error_message = "Request logging stores images and prompts: give kms_key_name, or leave request_logging out."
    }

    precondition {
      condition     = local.key_location == null || local.key_location == var.location
      error_message = "The key must lie in the endpoint's location, ${var.location}; a global or other key is refused."
    }
  }

  depends_on = [google_bigquery_dataset.requests]
}

# Made here, not given: only so is it certain that what is logged is encrypted with the key and expires.
resource "google_bigquery_dataset" "requests" {
  count = var.request_logging == null ? 0 : 1

  project                         = var.project_id
  dataset_id                      = local.log_dataset
  location                        = var.location
  description                     = "Logged requests and answers of endpoint ${var.endpoint_id}: patient data."
  labels                          = var.labels
  default_table_expiration_ms     = var.request_logging.retention_days * 24 * 60 * 60 * 1000
  default_partition_expiration_ms = var.request_logging.retention_days * 24 * 60 * 60 * 1000
  delete_contents_on_destroy      = false
  deletion_policy                 = var.deletion_protection ? "PREVENT" : "DELETE"

  dynamic "default_encryption_configuration" {
    for_each = var.kms_key_name == null ? [] : [var.kms_key_name]

    content {
      kms_key_name = default_encryption_configuration.value
    }
  }
}

check "reached_from_the_internet_with_own_key" {
  assert {
    condition     = local.private || var.kms_key_name != null || !var.warn_without_key
    error_message = "Endpoint ${var.endpoint_id} is public and has no kms_key_name: Google's keys protect it. A key can only be given at creation."
  }
}
