# Every input that the service would refuse late, refused early.

mock_provider "google" {}

variables {
  project_id   = "example-project"
  location     = "europe-west4"
  endpoint_id  = "77"
  display_name = "medgemma-4b"

  # A warning fails a run, so it is tested in a file of its own.
  warn_without_key = false
}

run "an_unknown_way_in" {
  command = plan

  variables {
    access = { mode = "public" }
  }

  expect_failures = [var.access]
}

run "private_without_a_project" {
  command = plan

  variables {
    access = { mode = "private" }
  }

  expect_failures = [var.access]
}

run "dedicated_with_allowed_projects" {
  command = plan

  variables {
    access = { allowed_projects = ["example-project"] }
  }

  expect_failures = [var.access]
}

run "automation_for_a_project_not_allowed" {
  command = plan

  variables {
    access = {
      mode             = "private"
      allowed_projects = ["example-project"]
      automation       = { "other-project" = "projects/1/global/networks/n" }
    }
  }

  expect_failures = [var.access]
}

run "automation_in_something_not_a_network" {
  command = plan

  variables {
    access = {
      mode             = "private"
      allowed_projects = ["example-project"]
      automation       = { "example-project" = "default" }
    }
  }

  expect_failures = [var.access]
}

run "an_empty_display_name" {
  command = plan

  variables {
    display_name = ""
  }

  expect_failures = [var.display_name]
}

run "a_display_name_of_129_characters" {
  command = plan

  variables {
    display_name = join("", [for i in range(129) : "x"])
  }

  expect_failures = [var.display_name]
}

run "an_endpoint_id_with_a_leading_zero" {
  command = plan

  variables {
    endpoint_id = "077"
  }

  expect_failures = [var.endpoint_id]
}

run "an_endpoint_id_of_letters" {
  command = plan

  variables {
    endpoint_id = "medgemma"
  }

  expect_failures = [var.endpoint_id]
}

run "an_endpoint_id_of_11_digits" {
  command = plan

  variables {
    endpoint_id = "12345678901"
  }

  expect_failures = [var.endpoint_id]
}

run "a_key_that_is_not_a_resource_name" {
  command = plan

  variables {
    kms_key_name = "serving"
  }

  expect_failures = [var.kms_key_name]
}

run "a_key_in_another_location" {
  command = plan

  variables {
    kms_key_name = "projects/p/locations/us-central1/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [google_vertex_ai_endpoint.this]
}

run "a_label_of_64_characters" {
  command = plan

  variables {
    labels = { digest = sha256("x") }
  }

  expect_failures = [var.labels]
}

run "a_label_in_capitals" {
  command = plan

  variables {
    labels = { model = "MedGemma" }
  }

  expect_failures = [var.labels]
}

run "a_label_key_that_starts_with_a_digit" {
  command = plan

  variables {
    labels = { "1model" = "medgemma" }
  }

  expect_failures = [var.labels]
}

run "sixty_one_labels" {
  command = plan

  variables {
    labels = { for i in range(61) : "l${i}" => "x" }
  }

  expect_failures = [var.labels]
}

run "a_label_of_the_provider" {
  command = plan

  variables {
    labels = { goog-terraform-provisioned = "true" }
  }

  expect_failures = [var.labels]
}

run "a_label_of_the_deployment" {
  command = plan

  variables {
    labels = { medport-lock = "x" }
  }

  expect_failures = [var.labels]
}

run "a_zone_for_a_location" {
  command = plan

  variables {
    location = "europe-west4-a"
  }

  expect_failures = [var.location]
}

run "a_multi_region_for_a_location" {
  command = plan

  variables {
    location = "eu"
  }

  expect_failures = [var.location]
}

run "a_project_number_for_an_id" {
  command = plan

  variables {
    project_id = "123456789012"
  }

  expect_failures = [var.project_id]
}

run "logging_without_accepting_patient_data" {
  command = plan

  variables {
    request_logging = {
      accept_patient_data = false
      retention_days      = 30
      sampling_rate       = 1
    }
    kms_key_name = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [var.request_logging]
}

run "logging_of_no_request" {
  command = plan

  variables {
    request_logging = {
      accept_patient_data = true
      retention_days      = 30
      sampling_rate       = 0
    }
    kms_key_name = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [var.request_logging]
}

run "logging_of_more_than_all" {
  command = plan

  variables {
    request_logging = {
      accept_patient_data = true
      retention_days      = 30
      sampling_rate       = 1.5
    }
    kms_key_name = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [var.request_logging]
}

run "a_log_that_expires_at_once" {
  command = plan

  variables {
    request_logging = {
      accept_patient_data = true
      retention_days      = 0
      sampling_rate       = 1
    }
    kms_key_name = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [var.request_logging]
}

run "a_log_kept_for_half_a_day" {
  command = plan

  variables {
    request_logging = {
      accept_patient_data = true
      retention_days      = 0.5
      sampling_rate       = 1
    }
    kms_key_name = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
  }

  expect_failures = [var.request_logging]
}

run "logging_without_a_key" {
  command = plan

  variables {
    request_logging = {
      accept_patient_data = true
      retention_days      = 30
      sampling_rate       = 1
    }
  }

  expect_failures = [google_vertex_ai_endpoint.this]
}
