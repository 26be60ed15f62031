# What the example plans, and what it refuses.

mock_provider "google" {}

variables {
  project_id  = "example-project"
  location    = "europe-west4"
  image_uri   = "europe-docker.pkg.dev/example/medport/serving@sha256:0000000000000000000000000000000000000000000000000000000000000000"
  accept_eula = true
}

run "pins_the_image_and_keeps_the_token_out" {
  command = plan

  assert {
    condition     = google_vertex_ai_endpoint_with_model_garden_deployment.this.model_config[0].container_spec[0].image_uri == var.image_uri
    error_message = "The image must be the one given, by digest."
  }

  assert {
    condition     = google_vertex_ai_endpoint_with_model_garden_deployment.this.model_config[0].hugging_face_access_token == null
    error_message = "A token given here would be in the state."
  }

  assert {
    condition     = google_vertex_ai_endpoint_with_model_garden_deployment.this.timeouts.create == "60m"
    error_message = "A machine that does not come up must not be paid for three hours."
  }
}

run "terms_nobody_accepted" {
  command = plan

  variables {
    accept_eula = false
  }

  expect_failures = [google_vertex_ai_endpoint_with_model_garden_deployment.this]
}

run "an_image_by_tag" {
  command = plan

  variables {
    image_uri = "europe-docker.pkg.dev/example/medport/serving:latest"
  }

  expect_failures = [var.image_uri]
}

run "a_model_without_its_version" {
  command = plan

  variables {
    publisher_model_name = "publishers/google/models/medgemma"
  }

  expect_failures = [var.publisher_model_name]
}

run "a_zone_for_a_location" {
  command = plan

  variables {
    location = "europe-west4-a"
  }

  expect_failures = [var.location]
}

run "three_accelerators" {
  command = plan

  variables {
    machine = { count = 3 }
  }

  expect_failures = [var.machine]
}

run "no_replica" {
  command = plan

  variables {
    replicas = { min = 0 }
  }

  expect_failures = [var.replicas]
}
