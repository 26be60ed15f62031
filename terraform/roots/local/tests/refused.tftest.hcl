# What the root itself refuses; the endpoint module refuses the rest.

mock_provider "google" {}

variables {
  project_id = "onprem-project"
  location   = "europe-west4"
  endpoints  = { medgemma = { id = "4100000001" } }
}

run "an_address_without_the_version" {
  command = plan

  variables {
    control_plane_url = "https://127.0.0.1:8443/"
  }

  expect_failures = [var.control_plane_url]
}

run "an_address_without_the_last_slash" {
  command = plan

  variables {
    control_plane_url = "https://127.0.0.1:8443/v1"
  }

  expect_failures = [var.control_plane_url]
}

run "an_address_of_google" {
  command = plan

  variables {
    control_plane_url = "https://europe-west4-aiplatform.googleapis.com/v1/"
  }

  expect_failures = [var.control_plane_url]
}

run "a_bare_connection_to_another_machine" {
  command = plan

  variables {
    control_plane_url = "http://gpu-server:8443/v1/"
  }

  expect_failures = [var.control_plane_url]
}

run "a_private_endpoint" {
  command = plan

  variables {
    endpoints = { medgemma = { id = "4100000001", mode = "private" } }
  }

  expect_failures = [var.endpoints]
}

run "one_number_for_two_endpoints" {
  command = plan

  variables {
    endpoints = {
      medgemma  = { id = "4100000001" }
      medsiglip = { id = "4100000001" }
    }
  }

  expect_failures = [var.endpoints]
}

run "a_label_of_64_characters" {
  command = plan

  variables {
    labels = { digest = sha256("x") }
  }

  expect_failures = [var.labels]
}
