# The composition, without a server; against a running control plane it is applied by the project's own tests.

mock_provider "google" {}

variables {
  project_id = "local"
  location   = "europe-west4"
  endpoints = {
    medgemma  = { id = "4100000001", labels = { model = "medgemma-4b-it" } }
    medsiglip = { id = "4100000002", mode = "shared", display_name = "MedSigLIP" }
  }
}

run "each_name_gets_an_endpoint" {
  command = apply

  assert {
    condition     = keys(output.medport.endpoints) == ["medgemma", "medsiglip"] && output.medport.endpoints["medgemma"].name == "4100000001"
    error_message = "Each name must get an endpoint of its number."
  }

  assert {
    condition     = output.medport.endpoints["medgemma"].access == "dedicated" && output.medport.endpoints["medsiglip"].access == "shared"
    error_message = "The way in is dedicated unless said otherwise."
  }

  assert {
    condition     = output.medport.endpoints["medgemma"].display_name == "medgemma" && output.medport.endpoints["medsiglip"].display_name == "MedSigLIP"
    error_message = "The display name is the one given, or else the name."
  }
}

run "the_hand_over_has_the_form_of_the_cloud_root" {
  command = plan

  assert {
    condition     = keys(output.medport) == ["deployer", "endpoints", "kms_key_name", "location", "project_id", "registry", "serving", "weights"]
    error_message = "A deployment must find the same names, null where there is nothing."
  }
}

run "an_address_on_this_machine_may_be_bare" {
  command = plan

  variables {
    control_plane_url = "http://127.0.0.1:8080/v1/"
  }

  assert {
    condition     = output.medport.location == "europe-west4"
    error_message = "A loopback address must be accepted."
  }
}
