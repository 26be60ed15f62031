# The audit trail: who changed what and, if asked for, who read what, kept for years under the site's own key.
locals {
  audited = var.audit == null ? {} : { (replace("${var.prefix}_audit", "-", "_")) = var.audit }
}

resource "google_bigquery_dataset" "audit" {
  for_each = local.audited

  project                         = var.project_id
  dataset_id                      = each.key
  location                        = var.location
  description                     = "Audit log of model endpoints."
  labels                          = var.labels
  default_table_expiration_ms     = each.value.retention_days * 24 * 60 * 60 * 1000
  default_partition_expiration_ms = each.value.retention_days * 24 * 60 * 60 * 1000
  delete_contents_on_destroy      = false
  deletion_policy                 = var.deletion_protection ? "PREVENT" : "DELETE"

  default_encryption_configuration {
    kms_key_name = each.value.kms_key_name
  }
}

resource "google_logging_project_sink" "audit" {
  for_each = local.audited

  project                = var.project_id
  name                   = "${var.prefix}-audit"
  description            = "Admin and data access of model endpoints."
  destination            = "bigquery.googleapis.com/projects/${var.project_id}/datasets/${google_bigquery_dataset.audit[each.key].dataset_id}"
  filter                 = "logName:\"cloudaudit.googleapis.com\" AND protoPayload.serviceName=\"aiplatform.googleapis.com\""
  unique_writer_identity = true

  bigquery_options {
    use_partitioned_tables = true
  }
}

resource "google_bigquery_dataset_iam_member" "sink" {
  for_each = local.audited

  project    = var.project_id
  dataset_id = google_bigquery_dataset.audit[each.key].dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = google_logging_project_sink.audit[each.key].writer_identity
}

# Authoritative for this one service: what was set for it by hand is replaced.
resource "google_project_iam_audit_config" "data_access" {
  count = try(var.audit.data_access, false) ? 1 : 0

  project = var.project_id
  service = "aiplatform.googleapis.com"

  dynamic "audit_log_config" {
    for_each = toset(["ADMIN_READ", "DATA_READ", "DATA_WRITE"])

    content {
      log_type = audit_log_config.key
    }
  }
}
