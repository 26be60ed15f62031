# No output is read from deployed_models: each canary step would show as a change of outputs, which is drift.

output "dedicated_dns" {
  description = "Host name of a dedicated endpoint; empty until the service has given one."
  value       = google_vertex_ai_endpoint.this.dedicated_endpoint_dns
}

output "endpoint" {
  description = "What a deployment needs of the endpoint, in one object."
  value = {
    access        = var.access.mode
    dedicated_dns = google_vertex_ai_endpoint.this.dedicated_endpoint_dns
    display_name  = google_vertex_ai_endpoint.this.display_name
    id            = google_vertex_ai_endpoint.this.id
    kms_key_name  = var.kms_key_name
    location      = google_vertex_ai_endpoint.this.location
    name          = google_vertex_ai_endpoint.this.name
    project_id    = var.project_id
    request_log   = local.log_table
  }
}

output "id" {
  description = "Resource name, `projects/P/locations/L/endpoints/N`."
  value       = google_vertex_ai_endpoint.this.id
}

output "name" {
  description = "The endpoint's number."
  value       = google_vertex_ai_endpoint.this.name
}

output "request_log" {
  description = "Table of logged requests, `bq://PROJECT.DATASET.TABLE`; null: nothing is logged."
  value       = local.log_table
}
