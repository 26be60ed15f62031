# A warning fails a run, so what warns by default has a file without the switch.

mock_provider "google" {}

variables {
  project_id   = "example-project"
  location     = "europe-west4"
  endpoint_id  = "77"
  display_name = "medgemma-4b"
}

run "a_public_endpoint_without_a_key_is_warned_of" {
  command = plan

  expect_failures = [check.reached_from_the_internet_with_own_key]
}

run "a_private_one_is_not" {
  command = plan

  variables {
    access = { mode = "private", allowed_projects = ["example-project"] }
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.dedicated_endpoint_enabled == null
    error_message = "A private endpoint must not be dedicated."
  }
}

run "one_with_a_key_is_not" {
  command = plan

  variables {
    kms_key_name = "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving"
  }

  assert {
    condition     = google_vertex_ai_endpoint.this.encryption_spec[0].kms_key_name == var.kms_key_name
    error_message = "The endpoint must use the key."
  }
}
