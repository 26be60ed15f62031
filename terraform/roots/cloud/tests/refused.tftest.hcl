# What the root itself refuses; the modules refuse the rest.

mock_provider "google" {}

variables {
  project_id          = "example-project"
  location            = "europe-west4"
  notification_emails = ["oncall@example.org"]
  endpoints           = { medgemma = { id = "4100000001" } }
}

run "a_location_the_policy_does_not_allow" {
  command = plan

  variables {
    allowed_locations = ["europe-west3"]
  }

  expect_failures = [var.location]
}

run "no_endpoint" {
  command = plan

  variables {
    endpoints = {}
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

run "an_attachment_of_a_public_endpoint" {
  command = plan

  variables {
    private_network = { service_attachments = { medgemma = "projects/p/regions/europe-west4/serviceAttachments/a" } }
  }

  expect_failures = [var.private_network]
}

run "an_attachment_of_no_endpoint" {
  command = plan

  variables {
    private_network = { service_attachments = { medsiglip = "projects/p/regions/europe-west4/serviceAttachments/a" } }
  }

  expect_failures = [var.private_network]
}

run "a_secret_without_its_value" {
  command = plan

  variables {
    secrets = { hub-token = { value_version = "1" } }
  }

  expect_failures = [var.secret_values]
}
