# Every input that a server would refuse late, refused early.

mock_provider "google" {}

variables {
  project_id          = "example-project"
  location            = "europe-west4"
  endpoints           = { medgemma = "77" }
  notification_emails = ["oncall@example.org"]
}

run "an_audit_key_that_is_not_a_resource_name" {
  command = plan

  variables {
    audit = {
      kms_key_name   = "serving"
      retention_days = 30
    }
  }

  expect_failures = [var.audit]
}

run "an_audit_key_in_another_location" {
  command = plan

  variables {
    audit = {
      kms_key_name   = "projects/p/locations/us-central1/keyRings/r/cryptoKeys/k"
      retention_days = 30
    }
  }

  expect_failures = [var.audit]
}

run "an_audit_log_that_expires_at_once" {
  command = plan

  variables {
    audit = {
      kms_key_name   = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
      retention_days = 0
    }
  }

  expect_failures = [var.audit]
}

run "a_billing_account_by_name" {
  command = plan

  variables {
    budget = {
      billing_account = "Radiology"
      currency        = "EUR"
      monthly_amount  = 100
      project_number  = "1"
    }
  }

  expect_failures = [var.budget]
}

run "a_budget_of_a_project_id" {
  command = plan

  variables {
    budget = {
      billing_account = "0A1B2C-3D4E5F-678901"
      currency        = "EUR"
      monthly_amount  = 100
      project_number  = "example-project"
    }
  }

  expect_failures = [var.budget]
}

run "a_currency_sign" {
  command = plan

  variables {
    budget = {
      billing_account = "0A1B2C-3D4E5F-678901"
      currency        = "€"
      monthly_amount  = 100
      project_number  = "1"
    }
  }

  expect_failures = [var.budget]
}

run "a_budget_of_nothing" {
  command = plan

  variables {
    budget = {
      billing_account = "0A1B2C-3D4E5F-678901"
      currency        = "EUR"
      monthly_amount  = 0
      project_number  = "1"
    }
  }

  expect_failures = [var.budget]
}

run "a_deployer_that_is_not_an_address" {
  command = plan

  variables {
    deployer = "medport-deployer"
  }

  expect_failures = [var.deployer]
}

run "no_endpoint" {
  command = plan

  variables {
    endpoints = {}
  }

  expect_failures = [var.endpoints]
}

run "an_endpoint_by_its_resource_name" {
  command = plan

  variables {
    endpoints = { medgemma = "projects/p/locations/l/endpoints/77" }
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

run "a_multi_region" {
  command = plan

  variables {
    location = "eu"
  }

  expect_failures = [var.location]
}

run "a_channel_by_its_number" {
  command = plan

  variables {
    notification_channels = ["9"]
  }

  expect_failures = [var.notification_channels]
}

run "a_mail_address_without_a_host" {
  command = plan

  variables {
    notification_emails = ["oncall"]
  }

  expect_failures = [var.notification_emails]
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

run "an_error_ratio_in_percent" {
  command = plan

  variables {
    thresholds = { error_ratio = 5 }
  }

  expect_failures = [var.thresholds]
}

run "a_duty_cycle_in_percent" {
  command = plan

  variables {
    thresholds = { duty_cycle = 90 }
  }

  expect_failures = [var.thresholds]
}

run "a_latency_of_nothing" {
  command = plan

  variables {
    thresholds = { p95_ms = 0 }
  }

  expect_failures = [var.thresholds]
}

run "a_duration_of_half_a_minute" {
  command = plan

  variables {
    thresholds = { duration_s = 30 }
  }

  expect_failures = [var.thresholds]
}

run "a_silence_of_a_whole_day" {
  command = plan

  variables {
    thresholds = { silence_s = 86400 }
  }

  expect_failures = [var.thresholds]
}

run "nobody_to_tell_is_warned_of" {
  command = plan

  variables {
    notification_emails = []
  }

  expect_failures = [check.somebody_is_told]
}
