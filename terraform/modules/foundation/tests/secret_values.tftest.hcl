# Apart from the plans: values made up during plan would not be those made up during apply.

mock_provider "google" {}

variables {
  project_id = "example-project"
  location   = "europe-west4"
}

run "a_value_is_written_and_not_kept" {
  command = apply

  variables {
    secrets       = { hub-token = { value_version = "2" } }
    secret_values = { hub-token = "not-a-real-token" }
  }

  assert {
    condition     = google_secret_manager_secret_version.this["hub-token"].secret_data_wo_version == "2"
    error_message = "The counter decides whether the value is written again."
  }

  assert {
    condition     = google_secret_manager_secret_version.this["hub-token"].secret_data_wo == null && google_secret_manager_secret_version.this["hub-token"].secret_data == null
    error_message = "The value must not be in the state."
  }
}
