# One key for weights, images, secrets, endpoint and logs, in the endpoint's location. Key rings and keys cannot be
# deleted on Google's side: a destroy only forgets them, and making them again needs an import.
locals {
  # Spelt out, so that a first plan already shows what is encrypted with what.
  kms_key_name = "projects/${var.project_id}/locations/${var.location}/keyRings/${google_kms_key_ring.this.name}/cryptoKeys/${google_kms_crypto_key.serving.name}"
}

resource "google_kms_key_ring" "this" {
  project  = var.project_id
  name     = var.prefix
  location = var.location

  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key" "serving" {
  name                       = "serving"
  key_ring                   = google_kms_key_ring.this.id
  purpose                    = "ENCRYPT_DECRYPT"
  rotation_period            = "${var.key.rotation_days * 24 * 60 * 60}s"
  destroy_scheduled_duration = "${var.key.destroy_after_days * 24 * 60 * 60}s"
  labels                     = var.labels
  deletion_policy            = local.deletion_policy

  version_template {
    algorithm        = "GOOGLE_SYMMETRIC_ENCRYPTION"
    protection_level = var.key.protection_level
  }
}

resource "google_kms_crypto_key_iam_member" "agents" {
  for_each = local.agents

  crypto_key_id = google_kms_crypto_key.serving.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = each.value
}
