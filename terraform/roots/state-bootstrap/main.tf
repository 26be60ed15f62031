# The bucket that states lie in, and its key. Made once, with a state of its own in this folder, which holds no secret;
# keep it, or import the four resources again.
data "google_storage_project_service_account" "this" {
  project = var.project_id
}

resource "google_kms_key_ring" "state" {
  project  = var.project_id
  name     = "${var.prefix}-state"
  location = var.location
}

resource "google_kms_crypto_key" "state" {
  name                       = "state"
  key_ring                   = google_kms_key_ring.state.id
  purpose                    = "ENCRYPT_DECRYPT"
  rotation_period            = "7776000s"
  destroy_scheduled_duration = "2592000s"
  deletion_policy            = "PREVENT"

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_kms_crypto_key_iam_member" "storage" {
  crypto_key_id = google_kms_crypto_key.state.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = data.google_storage_project_service_account.this.member
}

resource "google_storage_bucket" "state" {
  project                     = var.project_id
  name                        = coalesce(var.bucket_name, "${var.project_id}-${var.prefix}-state")
  location                    = var.location
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false
  deletion_policy             = "PREVENT"

  # A state that was overwritten by mistake can be brought back.
  versioning {
    enabled = true
  }

  encryption {
    default_kms_key_name = google_kms_crypto_key.state.id
  }

  soft_delete_policy {
    retention_duration_seconds = 30 * 24 * 60 * 60
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      num_newer_versions         = 20
      days_since_noncurrent_time = 90
      with_state                 = "ARCHIVED"
    }
  }

  lifecycle {
    prevent_destroy = true
  }

  depends_on = [google_kms_crypto_key_iam_member.storage]
}

resource "google_storage_bucket_iam_member" "users" {
  for_each = var.users

  bucket = google_storage_bucket.state.name
  role   = "roles/storage.objectUser"
  member = each.key
}
