# Each output waits for the grants its reader needs.

output "agents" {
  description = "Google's service agents that may use the key, by service."
  value       = local.agents

  depends_on = [google_kms_crypto_key_iam_member.agents]
}

output "deployer" {
  description = "Account that deploys, by address."
  value       = local.deployer

  depends_on = [
    google_project_iam_member.deployer,
    google_service_account_iam_member.deployer_acts_as_serving,
    google_storage_bucket_iam_member.deployer,
    google_artifact_registry_repository_iam_member.deployer,
  ]
}

output "foundation" {
  description = "What a deployment needs of the foundation, in one object."
  value = {
    deployer       = local.deployer
    kms_key_name   = local.kms_key_name
    location       = var.location
    project_id     = var.project_id
    project_number = local.number
    registry       = local.registry
    secrets        = { for name, secret in google_secret_manager_secret.this : name => secret.id }
    serving        = local.serving
    weights        = google_storage_bucket.weights.url
  }

  depends_on = [
    google_project_iam_member.serving,
    google_project_iam_member.deployer,
    google_service_account_iam_member.deployer_acts_as_serving,
    google_storage_bucket_iam_member.readers,
    google_storage_bucket_iam_member.deployer,
    google_artifact_registry_repository_iam_member.readers,
    google_artifact_registry_repository_iam_member.deployer,
    google_secret_manager_secret_iam_member.serving,
  ]
}

output "id" {
  description = "Resource name of the project, `projects/P`."
  value       = "projects/${var.project_id}"
}

output "kms_key_name" {
  description = "The key, once Google's agents may use it."
  value       = local.kms_key_name

  depends_on = [google_kms_crypto_key_iam_member.agents]
}

output "name" {
  description = "Start of every name made here."
  value       = var.prefix
}

output "project_number" {
  description = "The project's number, which service agents and budgets are named by."
  value       = local.number
}

output "registry" {
  description = "The image mirror, `LOCATION-docker.pkg.dev/PROJECT/REPOSITORY`."
  value       = local.registry

  depends_on = [google_artifact_registry_repository_iam_member.readers]
}

output "secrets" {
  description = "Resource names of the secret containers, by name."
  value       = { for name, secret in google_secret_manager_secret.this : name => secret.id }

  depends_on = [google_secret_manager_secret_iam_member.serving]
}

output "serving" {
  description = "Account that containers run as, by address."
  value       = local.serving

  depends_on = [google_project_iam_member.serving]
}

output "weights" {
  description = "Bucket of the snapshots, `gs://NAME`."
  value       = google_storage_bucket.weights.url

  depends_on = [google_storage_bucket_iam_member.readers]
}
