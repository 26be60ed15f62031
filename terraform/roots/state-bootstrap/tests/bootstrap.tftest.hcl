# What the root makes of good input.

mock_provider "google" {
  mock_data "google_storage_project_service_account" {
    defaults = { member = "serviceAccount:service-123456789012@gs-project-accounts.iam.gserviceaccount.com" }
  }

  mock_resource "google_kms_crypto_key" {
    defaults = { id = "projects/example-project/locations/europe-west4/keyRings/medport-state/cryptoKeys/state" }
  }
}

variables {
  project_id = "example-project"
  location   = "europe-west4"
  users      = ["group:platform@example.org"]
}

# A plan, as all here: an apply could not take down again what `prevent_destroy` guards.
run "states_are_private_versioned_and_kept" {
  command = plan

  assert {
    condition     = google_storage_bucket.state.name == "example-project-medport-state" && output.backend.bucket == google_storage_bucket.state.name
    error_message = "The bucket's name must come from project and prefix, and be handed over."
  }

  assert {
    condition     = google_storage_bucket.state.public_access_prevention == "enforced" && google_storage_bucket.state.uniform_bucket_level_access && google_storage_bucket.state.versioning[0].enabled
    error_message = "States must be private, and come back after a mistake."
  }

  assert {
    condition     = google_storage_bucket.state.force_destroy == false && google_storage_bucket.state.deletion_policy == "PREVENT" && google_kms_crypto_key.state.deletion_policy == "PREVENT"
    error_message = "Bucket and key must survive a destroy."
  }

  assert {
    condition     = google_storage_bucket.state.soft_delete_policy[0].retention_duration_seconds == 2592000
    error_message = "A deleted state must come back for 30 days."
  }
}

run "the_storage_agent_may_use_the_key" {
  command = plan

  assert {
    condition     = google_kms_crypto_key_iam_member.storage.member == "serviceAccount:service-123456789012@gs-project-accounts.iam.gserviceaccount.com"
    error_message = "Without the agent's grant the bucket cannot be made."
  }
}

run "named_users_and_nobody_else_read_states" {
  command = plan

  assert {
    condition     = keys(google_storage_bucket_iam_member.users) == ["group:platform@example.org"] && google_storage_bucket_iam_member.users["group:platform@example.org"].role == "roles/storage.objectUser"
    error_message = "Each named user must get one grant."
  }
}

run "a_name_given_is_used" {
  command = plan

  variables {
    bucket_name = "clinic-states"
  }

  assert {
    condition     = google_storage_bucket.state.name == "clinic-states"
    error_message = "A given name must be used."
  }
}
