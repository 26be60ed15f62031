output "deployed_model" {
  description = "Number of the deployed model."
  value       = google_vertex_ai_endpoint_with_model_garden_deployment.this.deployed_model_id
}

output "endpoint" {
  description = "Number of the endpoint. After a failed create it is empty while the endpoint may exist: see README.md."
  value       = google_vertex_ai_endpoint_with_model_garden_deployment.this.endpoint
}
