# What the module makes of good input.

mock_provider "google" {
  override_during = plan

  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }

  mock_data "google_storage_project_service_account" {
    defaults = { member = "serviceAccount:service-123456789012@gs-project-accounts.iam.gserviceaccount.com" }
  }

  mock_data "google_bigquery_default_service_account" {
    defaults = { member = "serviceAccount:bq-123456789012@bigquery-encryption.iam.gserviceaccount.com" }
  }

  mock_resource "google_kms_crypto_key" {
    defaults = { id = "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving" }
  }

  mock_resource "google_kms_key_ring" {
    defaults = { id = "projects/example-project/locations/europe-west4/keyRings/medport" }
  }

  mock_resource "google_service_account" {
    defaults = {
      email  = "made@example-project.iam.gserviceaccount.com"
      member = "serviceAccount:made@example-project.iam.gserviceaccount.com"
      name   = "projects/example-project/serviceAccounts/made@example-project.iam.gserviceaccount.com"
    }
  }

  mock_resource "google_project_iam_custom_role" {
    defaults = { name = "projects/example-project/roles/medport_deployer" }
  }
}

variables {
  project_id = "example-project"
  location   = "europe-west4"
}

run "services_stay_on_after_a_destroy" {
  command = plan

  assert {
    condition     = alltrue([for service in google_project_service.this : service.disable_on_destroy == false])
    error_message = "A destroy must not switch off services that others use."
  }

  assert {
    condition     = contains(keys(google_project_service.this), "aiplatform.googleapis.com")
    error_message = "The serving service must be on."
  }
}

run "the_weights_are_private_encrypted_and_kept" {
  command = plan

  assert {
    condition     = google_storage_bucket.weights.name == "example-project-medport-weights"
    error_message = "The bucket's name must come from project and prefix."
  }

  assert {
    condition     = google_storage_bucket.weights.public_access_prevention == "enforced" && google_storage_bucket.weights.uniform_bucket_level_access
    error_message = "The bucket must not be able to become public."
  }

  assert {
    condition     = google_storage_bucket.weights.encryption[0].default_kms_key_name == "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving"
    error_message = "The bucket must use the key."
  }

  assert {
    condition     = google_storage_bucket.weights.versioning[0].enabled && google_storage_bucket.weights.force_destroy == false && google_storage_bucket.weights.deletion_policy == "PREVENT"
    error_message = "Weights must survive a mistake."
  }

  assert {
    condition     = length(google_storage_bucket.weights.retention_policy) == 0
    error_message = "Without retention_days nothing is kept by force."
  }
}

run "old_versions_and_broken_uploads_go_after_a_while" {
  command = plan

  assert {
    condition     = one([for rule in google_storage_bucket.weights.lifecycle_rule : one(rule.condition).num_newer_versions if one(rule.action).type == "Delete"]) == 3
    error_message = "Three newer versions must be there before an old one goes."
  }

  assert {
    condition     = one([for rule in google_storage_bucket.weights.lifecycle_rule : one(rule.condition) if one(rule.action).type == "Delete"]).with_state == "ARCHIVED" && one([for rule in google_storage_bucket.weights.lifecycle_rule : one(rule.condition) if one(rule.action).type == "Delete"]).days_since_noncurrent_time == 30
    error_message = "Only what was replaced a month ago may go, never what is current."
  }

  assert {
    condition     = one([for rule in google_storage_bucket.weights.lifecycle_rule : one(rule.condition).age if one(rule.action).type == "AbortIncompleteMultipartUpload"]) == 7
    error_message = "What was never whole must go after a week."
  }

  assert {
    condition     = google_storage_bucket.weights.soft_delete_policy[0].retention_duration_seconds == 604800
    error_message = "A deleted file must come back for a week."
  }
}

run "who_serves_reads_weights_and_images_and_writes_logs_and_metrics" {
  command = plan

  assert {
    condition     = toset([for grant in google_storage_bucket_iam_member.readers : grant.role]) == toset(["roles/storage.objectViewer"]) && keys(google_storage_bucket_iam_member.readers) == ["agent", "serving"]
    error_message = "Weights are read by the service's agent and who serves."
  }

  assert {
    condition     = toset([for grant in google_artifact_registry_repository_iam_member.readers : grant.role]) == toset(["roles/artifactregistry.reader"]) && google_artifact_registry_repository_iam_member.deployer.role == "roles/artifactregistry.writer"
    error_message = "Images are read by those, and written by the deployer."
  }

  assert {
    condition     = keys(google_project_iam_member.serving) == ["roles/logging.logWriter", "roles/monitoring.metricWriter"]
    error_message = "In the project, who serves writes logs and metrics, and nothing else."
  }

  assert {
    condition     = toset([for grant in google_kms_crypto_key_iam_member.agents : grant.role]) == toset(["roles/cloudkms.cryptoKeyEncrypterDecrypter"])
    error_message = "Agents use the key; they do not manage it."
  }
}

run "retention_is_counted_in_seconds" {
  command = plan

  variables {
    weights_bucket = { retention_days = 365, retention_locked = true }
  }

  assert {
    condition     = google_storage_bucket.weights.retention_policy[0].retention_period == "31536000" && google_storage_bucket.weights.retention_policy[0].is_locked
    error_message = "A year must be 31536000 seconds, locked."
  }
}

run "the_key_rotates_and_lies_with_the_endpoints" {
  command = plan

  assert {
    condition     = google_kms_key_ring.this.location == var.location
    error_message = "The key must lie in the endpoints' location."
  }

  assert {
    condition     = google_kms_crypto_key.serving.purpose == "ENCRYPT_DECRYPT" && google_kms_crypto_key.serving.version_template[0].protection_level == "SOFTWARE" && google_kms_crypto_key.serving.version_template[0].algorithm == "GOOGLE_SYMMETRIC_ENCRYPTION"
    error_message = "It must be a key to encrypt with, in software unless asked for otherwise."
  }

  assert {
    condition     = google_kms_crypto_key.serving.rotation_period == "7776000s" && google_kms_crypto_key.serving.destroy_scheduled_duration == "2592000s"
    error_message = "The key must rotate every 90 days, and its versions survive 30 days of regret."
  }

  assert {
    condition     = google_kms_crypto_key.serving.deletion_policy == "PREVENT"
    error_message = "The key must be protected from deletion by default."
  }
}

run "agents_get_the_key_only_where_their_service_is_used" {
  command = plan

  assert {
    condition     = toset(keys(google_kms_crypto_key_iam_member.agents)) == toset(["aiplatform", "artifactregistry", "storage"])
    error_message = "Without secrets and logs only three agents need the key."
  }

  assert {
    condition     = google_kms_crypto_key_iam_member.agents["aiplatform"].member == "serviceAccount:service-123456789012@gcp-sa-aiplatform.iam.gserviceaccount.com"
    error_message = "The agent is named by the project's number."
  }
}

run "secrets_and_logs_bring_their_agents" {
  command = plan

  variables {
    additional_services = ["bigquery.googleapis.com"]
    secrets             = { hub-token = {} }
  }

  assert {
    condition     = toset(keys(google_kms_crypto_key_iam_member.agents)) == toset(["aiplatform", "artifactregistry", "bigquery", "secretmanager", "storage"])
    error_message = "Each service that stores our bytes must be able to use the key."
  }

  assert {
    condition = tomap({ for name in ["artifactregistry", "secretmanager"] : name => google_kms_crypto_key_iam_member.agents[name].member }) == tomap({
      artifactregistry = "serviceAccount:service-123456789012@gcp-sa-artifactregistry.iam.gserviceaccount.com"
      secretmanager    = "serviceAccount:service-123456789012@gcp-sa-secretmanager.iam.gserviceaccount.com"
    })
    error_message = "Each grant must be the agent's own."
  }
}

run "the_deployer_may_not_change_access_or_train" {
  command = plan

  assert {
    condition     = alltrue([for permission in google_project_iam_custom_role.deployer.permissions : !strcontains(permission, "setIamPolicy") && !strcontains(permission, "Jobs.")])
    error_message = "The deployer's role must hold neither access changes nor jobs."
  }

  assert {
    condition     = google_project_iam_custom_role.deployer.role_id == "medport_deployer"
    error_message = "Role ids take no hyphens."
  }

  assert {
    condition     = google_service_account_iam_member.deployer_acts_as_serving.role == "roles/iam.serviceAccountUser" && length(google_service_account_iam_member.impersonators) == 0
    error_message = "The deployer acts as serving; nobody acts as the deployer unless named."
  }

  assert {
    condition     = output.deployer == "medport-deployer@example-project.iam.gserviceaccount.com" && google_service_account.deployer.account_id == "medport-deployer"
    error_message = "The deployer's address must be the account's."
  }

  assert {
    condition     = output.serving == "medport-serving@example-project.iam.gserviceaccount.com" && google_service_account.serving.account_id == "medport-serving"
    error_message = "The serving address must be the account's."
  }

  assert {
    condition     = toset([for grant in google_storage_bucket_iam_member.deployer : grant.role]) == toset(["roles/storage.objectCreator", "roles/storage.objectViewer"])
    error_message = "The deployer may add weights, never overwrite or delete them."
  }
}

run "named_people_may_act_as_the_deployer" {
  command = plan

  variables {
    deployer_impersonators = ["group:platform@example.org", "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/*"]
  }

  assert {
    condition     = length(google_service_account_iam_member.impersonators) == 2 && google_service_account_iam_member.impersonators["group:platform@example.org"].role == "roles/iam.serviceAccountTokenCreator"
    error_message = "Each named member must get one grant."
  }
}

run "images_are_immutable_and_never_deleted_by_default" {
  command = plan

  assert {
    condition     = google_artifact_registry_repository.images.docker_config[0].immutable_tags && length(google_artifact_registry_repository.images.cleanup_policies) == 0
    error_message = "Tags must not move, images must not vanish."
  }

  assert {
    condition     = google_artifact_registry_repository.images.format == "DOCKER"
    error_message = "The mirror must hold images."
  }

  assert {
    condition     = google_artifact_registry_repository.images.kms_key_name == "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving"
    error_message = "The mirror must use the key."
  }

  assert {
    condition     = output.registry == "europe-west4-docker.pkg.dev/example-project/medport-serving"
    error_message = "The mirror's address must be an output."
  }
}

run "a_cleanup_keeps_the_digests_in_use" {
  command = plan

  variables {
    registry = {
      delete_after_days = 90
      keep_digests      = ["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
    }
  }

  assert {
    condition     = toset([for policy in google_artifact_registry_repository.images.cleanup_policies : policy.action]) == toset(["DELETE", "KEEP"])
    error_message = "A cleanup needs a rule that keeps what is in use."
  }

  assert {
    condition     = one([for policy in google_artifact_registry_repository.images.cleanup_policies : policy.condition[0].version_name_prefixes if policy.action == "KEEP"]) == tolist(var.registry.keep_digests) && google_artifact_registry_repository.images.cleanup_policy_dry_run == false
    error_message = "The rule must name the digests, and the cleanup be real."
  }

  assert {
    condition     = toset([for policy in google_artifact_registry_repository.images.cleanup_policies : policy.condition[0].tag_state]) == toset(["ANY"])
    error_message = "Images by digest have no tag: both rules must see them."
  }

  assert {
    condition     = one([for policy in google_artifact_registry_repository.images.cleanup_policies : policy.condition[0].older_than if policy.action == "DELETE"]) == "7776000s"
    error_message = "90 days must be 7776000 seconds."
  }
}

run "a_secret_is_a_container_without_a_value_by_default" {
  command = plan

  variables {
    secrets = { hub-token = {} }
  }

  assert {
    condition     = google_secret_manager_secret.this["hub-token"].secret_id == "medport-hub-token" && length(google_secret_manager_secret_version.this) == 0
    error_message = "Without a value_version there is a container and no value."
  }

  assert {
    condition     = google_secret_manager_secret_iam_member.serving["hub-token"].role == "roles/secretmanager.secretAccessor"
    error_message = "Who serves must be able to read it."
  }
}

run "protection_can_be_lifted_everywhere_at_once" {
  command = plan

  variables {
    deletion_protection = false
    secrets             = { hub-token = {} }
  }

  assert {
    condition = toset([
      google_kms_crypto_key.serving.deletion_policy,
      google_storage_bucket.weights.deletion_policy,
      google_artifact_registry_repository.images.deletion_policy,
      google_secret_manager_secret.this["hub-token"].deletion_policy,
    ]) == toset(["DELETE"])
    error_message = "Lifting the protection must reach everything that holds data."
  }
}
