# Where snapshots lie: one folder a commit, never overwritten, readable by who serves them.
resource "google_storage_bucket" "weights" {
  project                     = var.project_id
  name                        = coalesce(var.weights_bucket.name, "${var.project_id}-${var.prefix}-weights")
  location                    = var.location
  labels                      = var.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false
  deletion_policy             = local.deletion_policy

  versioning {
    enabled = true
  }

  encryption {
    default_kms_key_name = local.kms_key_name
  }

  soft_delete_policy {
    retention_duration_seconds = var.weights_bucket.soft_delete_days * 24 * 60 * 60
  }

  dynamic "retention_policy" {
    for_each = var.weights_bucket.retention_days == null ? [] : [var.weights_bucket.retention_days]

    content {
      retention_period = tostring(retention_policy.value * 24 * 60 * 60)
      is_locked        = var.weights_bucket.retention_locked
    }
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      num_newer_versions         = 3
      days_since_noncurrent_time = 30
      with_state                 = "ARCHIVED"
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }

    condition {
      age = 7
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agents]
}

resource "google_storage_bucket_iam_member" "readers" {
  for_each = {
    agent   = local.agents.aiplatform
    serving = google_service_account.serving.member
  }

  bucket = google_storage_bucket.weights.name
  role   = "roles/storage.objectViewer"
  member = each.value
}

# May add, may look, may not overwrite or delete: a snapshot stays what was approved.
resource "google_storage_bucket_iam_member" "deployer" {
  for_each = toset(["roles/storage.objectCreator", "roles/storage.objectViewer"])

  bucket = google_storage_bucket.weights.name
  role   = each.key
  member = google_service_account.deployer.member
}

check "retention_can_be_shortened" {
  assert {
    condition     = var.weights_bucket.retention_days == null || var.weights_bucket.retention_locked
    error_message = "The weights' retention is not locked: who may change the bucket may shorten it. Locking cannot be undone."
  }
}
