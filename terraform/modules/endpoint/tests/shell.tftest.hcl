# What the module makes of good input.

mock_provider "google" {
  mock_resource "google_vertex_ai_endpoint" {
    defaults = {
      dedicated_endpoint_dns = "77.europe-west4-1.prediction.vertexai.goog"
    }
  }
}

variables {
  project_id   = "example-project"
  location     = "europe-west4"
  endpoint_id  = "77"
  display_name = "medgemma-4b"

  # A warning fails a run; that it comes is tested in refused.tftest.hcl.
  warn_without_key = false
}

run "is_dedicated_and_protected_by_default" {
  command = apply

  assert {
    condition     = google_vertex_ai_endpoint.this.dedicated_endpoint_enabled == true
    error_message = "The default way in must be dedicated."
  }

  assert {
    condition     = length(google_vertex_ai_endpoint.this.private_service_connect_config) == 0
    error_message = "A dedicated endpoint must have no Private Service Connect."
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.deletion_policy == "PREVENT"
    error_message = "The endpoint must be protected from deletion by default."
  }

  assert {
    condition     = output.dedicated_dns == "77.europe-west4-1.prediction.vertexai.goog" && output.endpoint.dedicated_dns == output.dedicated_dns
    error_message = "The host name must be an output."
  }

  assert {
    condition     = output.name == "77" && output.endpoint.access == "dedicated"
    error_message = "The number and the way in must be outputs."
  }
}

run "logs_nothing_by_default" {
  command = plan

  assert {
    condition     = length(google_vertex_ai_endpoint.this.predict_request_response_logging_config) == 0 && length(google_bigquery_dataset.requests) == 0
    error_message = "Requests hold patient data: nothing may be logged unless asked for."
  }

  assert {
    condition     = output.request_log == null
    error_message = "Without logging there is no table."
  }
}

run "leaves_region_to_the_provider" {
  command = plan

  assert {
    condition     = google_vertex_ai_endpoint.this.region == null
    error_message = "A region in the resource replaces an imported endpoint."
  }
}

run "shared_is_not_dedicated" {
  command = plan

  variables {
    access = { mode = "shared" }
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.dedicated_endpoint_enabled == false
    error_message = "A shared endpoint must not be dedicated."
  }
}

run "private_leaves_dedicated_unset" {
  command = plan

  variables {
    access = {
      mode             = "private"
      allowed_projects = ["zebra-project", "apple-project"]
      automation       = { "zebra-project" = "projects/123/global/networks/clinic" }
    }
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.dedicated_endpoint_enabled == null
    error_message = "Dedicated and private exclude each other."
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.private_service_connect_config[0].enable_private_service_connect
    error_message = "A private endpoint must have Private Service Connect."
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.private_service_connect_config[0].project_allowlist == tolist(["apple-project", "zebra-project"])
    error_message = "The allow-list must have one order, or it shows as a change."
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.private_service_connect_config[0].psc_automation_configs[0].network == "projects/123/global/networks/clinic"
    error_message = "The network of the automation must reach the endpoint."
  }
}

run "key_and_logging_go_together" {
  command = plan

  variables {
    kms_key_name = "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving"
    request_logging = {
      accept_patient_data = true
      retention_days      = 30
      sampling_rate       = 0.1
    }
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.encryption_spec[0].kms_key_name == var.kms_key_name
    error_message = "The endpoint must use the key."
  }

  assert {
    condition     = google_bigquery_dataset.requests[0].default_encryption_configuration[0].kms_key_name == var.kms_key_name
    error_message = "The log must use the key."
  }

  assert {
    condition     = google_bigquery_dataset.requests[0].default_partition_expiration_ms == 2592000000 && google_bigquery_dataset.requests[0].default_table_expiration_ms == 2592000000
    error_message = "The log must expire after 30 days."
  }

  assert {
    condition     = google_bigquery_dataset.requests[0].delete_contents_on_destroy == false && google_bigquery_dataset.requests[0].deletion_policy == "PREVENT"
    error_message = "The log must not go with a destroy."
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.predict_request_response_logging_config[0].bigquery_destination[0].output_uri == "bq://example-project.medport_requests_77.requests"
    error_message = "The endpoint must log to the module's own dataset."
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.predict_request_response_logging_config[0].sampling_rate == 0.1
    error_message = "The share of logged requests must be as asked for."
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.predict_request_response_logging_config[0].enabled
    error_message = "Logging that was asked for must be on."
  }
}

run "all_requests_are_logged_unless_a_share_is_given" {
  command = plan

  variables {
    kms_key_name    = "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving"
    request_logging = { accept_patient_data = true, retention_days = 30 }
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.predict_request_response_logging_config[0].sampling_rate == 1
    error_message = "A log that misses requests must be asked for."
  }
}

run "protection_can_be_lifted" {
  command = plan

  variables {
    deletion_protection = false
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.deletion_policy == "DELETE"
    error_message = "Without protection the endpoint must be deletable."
  }
}

run "labels_reach_the_endpoint" {
  command = plan

  variables {
    labels = { model = "medgemma-4b", digest = "bo6vlovokaxqcwk3iyqxzqr6x5quxf2nbs3g4gd3m4ekexktxs5q" }
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.labels["digest"] == "bo6vlovokaxqcwk3iyqxzqr6x5quxf2nbs3g4gd3m4ekexktxs5q"
    error_message = "A digest in base32 must fit a label."
  }
}
