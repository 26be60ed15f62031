# The mirror of serving images. Terraform cannot copy images: the deployment tool does, by digest, and compares digests.
locals {
  registry = "${var.location}-docker.pkg.dev/${var.project_id}/${google_artifact_registry_repository.images.repository_id}"
}

resource "google_artifact_registry_repository" "images" {
  project       = var.project_id
  location      = var.location
  repository_id = coalesce(var.registry.repository_id, "${var.prefix}-serving")
  description   = "Serving images, copied by digest."
  format        = "DOCKER"
  labels        = var.labels
  kms_key_name  = local.kms_key_name

  deletion_policy        = local.deletion_policy
  cleanup_policy_dry_run = false

  docker_config {
    immutable_tags = true
  }

  # Nothing is ever deleted unless asked for; what is named in keep_digests is kept then too.
  dynamic "cleanup_policies" {
    for_each = var.registry.delete_after_days == null ? [] : [var.registry.delete_after_days]

    content {
      id     = "delete-old"
      action = "DELETE"

      condition {
        older_than = "${cleanup_policies.value * 24 * 60 * 60}s"
        tag_state  = "ANY"
      }
    }
  }

  dynamic "cleanup_policies" {
    for_each = length(var.registry.keep_digests) == 0 ? [] : [sort(var.registry.keep_digests)]

    content {
      id     = "keep-in-use"
      action = "KEEP"

      condition {
        tag_state             = "ANY"
        version_name_prefixes = cleanup_policies.value
      }
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.agents]
}

resource "google_artifact_registry_repository_iam_member" "readers" {
  for_each = {
    agent   = local.agents.aiplatform
    serving = google_service_account.serving.member
  }

  project    = var.project_id
  location   = var.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = each.value
}

resource "google_artifact_registry_repository_iam_member" "deployer" {
  project    = var.project_id
  location   = var.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.deployer.member
}
