# Every input that the service would refuse late, refused early.

mock_provider "google" {}

variables {
  project_id = "example-project"
  location   = "europe-west4"
}

run "a_bucket_in_capitals" {
  command = plan

  variables {
    bucket_name = "State"
  }

  expect_failures = [var.bucket_name]
}

run "a_label_of_64_characters" {
  command = plan

  variables {
    labels = { digest = sha256("x") }
  }

  expect_failures = [var.labels]
}

run "a_multi_region" {
  command = plan

  variables {
    location = "eu"
  }

  expect_failures = [var.location]
}

run "a_prefix_in_capitals" {
  command = plan

  variables {
    prefix = "Medport"
  }

  expect_failures = [var.prefix]
}

run "a_project_number_for_an_id" {
  command = plan

  variables {
    project_id = "123456789012"
  }

  expect_failures = [var.project_id]
}

run "everybody_as_a_user" {
  command = plan

  variables {
    users = ["allAuthenticatedUsers"]
  }

  expect_failures = [var.users]
}
