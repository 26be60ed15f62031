output "backend" {
  description = "What `-backend-config` of the other roots needs."
  value = {
    bucket             = google_storage_bucket.state.name
    kms_encryption_key = google_kms_crypto_key.state.id
    prefix             = var.prefix
  }

  depends_on = [google_storage_bucket_iam_member.users]
}
