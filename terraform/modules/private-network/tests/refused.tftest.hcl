# Every input that the service would refuse late, refused early.

mock_provider "google" {}

variables {
  project_id = "example-project"
  location   = "europe-west4"
  endpoints  = { medgemma = {} }
}

run "a_domain_with_its_last_dot" {
  command = plan

  variables {
    dns_domain = "medport.internal."
  }

  expect_failures = [var.dns_domain]
}

run "a_domain_of_one_label" {
  command = plan

  variables {
    dns_domain = "internal"
  }

  expect_failures = [var.dns_domain]
}

run "no_endpoint" {
  command = plan

  variables {
    endpoints = {}
  }

  expect_failures = [var.endpoints]
}

run "an_endpoint_with_a_dot" {
  command = plan

  variables {
    endpoints = { "medgemma.4b" = {} }
  }

  expect_failures = [var.endpoints]
}

run "an_attachment_that_is_a_url" {
  command = plan

  variables {
    endpoints = { medgemma = { service_attachment = "https://example.org/a" } }
  }

  expect_failures = [var.endpoints]
}

run "an_attachment_in_another_region" {
  command = plan

  variables {
    endpoints = { medgemma = { service_attachment = "projects/p/regions/us-central1/serviceAttachments/a" } }
  }

  expect_failures = [google_compute_forwarding_rule.this]
}

run "a_range_with_host_bits" {
  command = plan

  variables {
    ip_cidr_range = "10.20.0.1/24"
  }

  expect_failures = [var.ip_cidr_range]
}

run "a_public_range" {
  command = plan

  variables {
    ip_cidr_range = "8.8.8.0/24"
  }

  expect_failures = [var.ip_cidr_range]
}

run "a_range_of_four" {
  command = plan

  variables {
    ip_cidr_range = "10.20.0.0/30"
  }

  expect_failures = [var.ip_cidr_range]
}

run "a_zone_for_a_location" {
  command = plan

  variables {
    location = "europe-west4-a"
  }

  expect_failures = [var.location]
}

run "a_network_by_its_short_name" {
  command = plan

  variables {
    network_id = "default"
  }

  expect_failures = [var.network_id]
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
