# Containers for secrets. A value, where one is given, is written once and never read: it is in no plan and no state.
resource "google_secret_manager_secret" "this" {
  for_each = var.secrets

  project         = var.project_id
  secret_id       = "${var.prefix}-${each.key}"
  labels          = var.labels
  deletion_policy = local.deletion_policy

  replication {
    user_managed {
      replicas {
        location = var.location

        customer_managed_encryption {
          kms_key_name = local.kms_key_name
        }
      }
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agents]
}

resource "google_secret_manager_secret_version" "this" {
  for_each = { for name, secret in var.secrets : name => secret if secret.value_version != null }

  secret                 = google_secret_manager_secret.this[each.key].id
  secret_data_wo         = var.secret_values[each.key]
  secret_data_wo_version = each.value.value_version
}

# Only who serves may read, and only these: no grant on the project.
resource "google_secret_manager_secret_iam_member" "serving" {
  for_each = var.secrets

  project   = var.project_id
  secret_id = google_secret_manager_secret.this[each.key].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.serving.member
}
