# The composition, planned as a first plan is: what a server makes up is not known yet.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

variables {
  project_id          = "example-project"
  location            = "europe-west4"
  notification_emails = ["oncall@example.org"]

  # An ephemeral variable left to its default cannot be applied by `terraform test`.
  secret_values = {}

  endpoints = {
    medgemma  = { id = "4100000001" }
    medsiglip = { id = "4100000002", display_name = "MedSigLIP" }
  }
}

run "a_first_plan_needs_nothing_that_is_not_known_yet" {
  command = plan

  assert {
    condition     = keys(module.endpoint) == ["medgemma", "medsiglip"] && length(module.private_network) == 0
    error_message = "There must be one endpoint a name, and no network for public ones."
  }
}

run "endpoints_use_the_foundations_key" {
  command = plan

  assert {
    condition     = output.medport.endpoints["medgemma"].kms_key_name == "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving" && output.medport.endpoints["medgemma"].kms_key_name == output.medport.kms_key_name
    error_message = "Each endpoint must be encrypted with the foundation's key."
  }
}

run "the_hand_over_names_all_a_deployment_needs" {
  command = apply

  assert {
    condition     = output.medport.serving == "medport-serving@example-project.iam.gserviceaccount.com" && output.medport.deployer == "medport-deployer@example-project.iam.gserviceaccount.com"
    error_message = "The accounts must be handed over."
  }

  assert {
    condition     = output.medport.registry == "europe-west4-docker.pkg.dev/example-project/medport-serving"
    error_message = "The mirror must be handed over."
  }

  assert {
    condition     = output.medport.endpoints["medsiglip"].display_name == "MedSigLIP" && output.medport.endpoints["medgemma"].display_name == "medgemma"
    error_message = "The display name is the one given, or else the name."
  }
}

run "nothing_is_logged_and_no_log_service_is_on_by_default" {
  command = plan

  assert {
    condition     = alltrue([for endpoint in values(output.medport.endpoints) : endpoint.request_log == null])
    error_message = "Requests hold patient data: nothing may be logged unless asked for."
  }

  assert {
    condition     = !contains(keys(module.foundation.agents), "bigquery")
    error_message = "Without a log its agent needs no key."
  }
}

run "logging_brings_its_service_and_agent" {
  command = plan

  variables {
    endpoints = {
      medgemma = { id = "4100000001", request_logging = { accept_patient_data = true, retention_days = 30 } }
    }
  }

  assert {
    condition     = output.medport.endpoints["medgemma"].request_log == "bq://example-project.medport_requests_4100000001.requests"
    error_message = "The table must be handed over."
  }

  assert {
    condition     = contains(keys(module.foundation.agents), "bigquery")
    error_message = "The log's agent must be able to use the key."
  }
}

run "a_private_endpoint_brings_a_network" {
  command = apply

  variables {
    endpoints = {
      medgemma = { id = "4100000001", access = { mode = "private", allowed_projects = ["example-project"] } }
    }
  }

  assert {
    condition     = output.private_network["medgemma"].host == "medgemma.medport.internal" && output.private_network["medgemma"].ready == false
    error_message = "The private name must be there, and say that it leads nowhere yet."
  }
}

run "its_attachment_makes_it_ready" {
  command = apply

  variables {
    endpoints = {
      medgemma = { id = "4100000001", access = { mode = "private", allowed_projects = ["example-project"] } }
    }
    private_network = { service_attachments = { medgemma = "projects/producer/regions/europe-west4/serviceAttachments/a" } }
  }

  assert {
    condition     = output.private_network["medgemma"].ready
    error_message = "With its attachment the endpoint must be ready."
  }
}

run "audit_and_budget_are_passed_on" {
  command = plan

  variables {
    audit  = { data_access = true }
    budget = { billing_account = "0A1B2C-3D4E5F-678901", monthly_amount = 2000 }
  }

  assert {
    condition     = module.observability.audit_dataset == "example-project.medport_audit"
    error_message = "The audit log must be made."
  }
}
