# Every input that a server would refuse late, or that loses data, refused early.

mock_provider "google" {}

variables {
  project_id = "example-project"
  location   = "europe-west4"
}

run "a_service_that_is_not_a_host_name" {
  command = plan

  variables {
    additional_services = ["bigquery"]
  }

  expect_failures = [var.additional_services]
}

run "everybody_as_the_deployer" {
  command = plan

  variables {
    deployer_impersonators = ["allUsers"]
  }

  expect_failures = [var.deployer_impersonators]
}

run "a_whole_domain_as_the_deployer" {
  command = plan

  variables {
    deployer_impersonators = ["domain:example.org"]
  }

  expect_failures = [var.deployer_impersonators]
}

run "an_unknown_protection_of_the_key" {
  command = plan

  variables {
    key = { protection_level = "EXTERNAL" }
  }

  expect_failures = [var.key]
}

run "a_key_that_never_rotates" {
  command = plan

  variables {
    key = { rotation_days = 0 }
  }

  expect_failures = [var.key]
}

run "a_key_that_is_lost_at_once" {
  command = plan

  variables {
    key = { destroy_after_days = 0 }
  }

  expect_failures = [var.key]
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

run "a_prefix_too_long_for_an_account" {
  command = plan

  variables {
    prefix = "a-prefix-of-21-letters"
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

run "a_tag_for_a_digest" {
  command = plan

  variables {
    registry = { keep_digests = ["v1"] }
  }

  expect_failures = [var.registry]
}

run "a_cleanup_without_digests_to_keep" {
  command = plan

  variables {
    registry = { delete_after_days = 30 }
  }

  expect_failures = [var.registry]
}

run "a_cleanup_of_images_made_today" {
  command = plan

  variables {
    registry = {
      delete_after_days = 0
      keep_digests      = ["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
    }
  }

  expect_failures = [var.registry]
}

run "a_repository_in_capitals" {
  command = plan

  variables {
    registry = { repository_id = "Serving" }
  }

  expect_failures = [var.registry]
}

run "a_secret_with_spaces" {
  command = plan

  variables {
    secrets = { "hub token" = {} }
  }

  expect_failures = [var.secrets]
}

run "a_value_version_in_words" {
  command = plan

  variables {
    secrets = { hub-token = { value_version = "latest" } }
  }

  expect_failures = [var.secrets]
}

run "a_secret_without_its_value" {
  command = plan

  variables {
    secrets = { hub-token = { value_version = "1" } }
  }

  expect_failures = [var.secret_values]
}

run "a_bucket_in_capitals" {
  command = plan

  variables {
    weights_bucket = { name = "Weights" }
  }

  expect_failures = [var.weights_bucket]
}

run "a_bucket_with_a_reserved_name" {
  command = plan

  variables {
    weights_bucket = { name = "goog-weights" }
  }

  expect_failures = [var.weights_bucket]
}

run "soft_delete_of_three_days" {
  command = plan

  variables {
    weights_bucket = { soft_delete_days = 3 }
  }

  expect_failures = [var.weights_bucket]
}

run "retention_of_no_days" {
  command = plan

  variables {
    weights_bucket = { retention_days = 0, retention_locked = true }
  }

  expect_failures = [var.weights_bucket]
}

run "a_lock_without_retention" {
  command = plan

  variables {
    weights_bucket = { retention_locked = true }
  }

  expect_failures = [var.weights_bucket]
}

run "retention_without_a_lock_is_warned_of" {
  command = plan

  variables {
    weights_bucket = { retention_days = 30 }
  }

  expect_failures = [check.retention_can_be_shortened]
}
