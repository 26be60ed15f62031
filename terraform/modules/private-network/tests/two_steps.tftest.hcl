# What the module makes of good input: first the addresses, then, with the attachments, the way.

mock_provider "google" {
  mock_resource "google_compute_address" {
    defaults = {
      address   = "10.20.0.5"
      self_link = "projects/example-project/regions/europe-west4/addresses/medport-medgemma"
    }
  }

  mock_resource "google_compute_network" {
    defaults = { id = "projects/example-project/global/networks/medport" }
  }
}

variables {
  project_id = "example-project"
  location   = "europe-west4"
  endpoints  = { medgemma = {} }
}

run "before_the_first_deployment_there_is_a_name_and_no_rule" {
  command = apply

  assert {
    condition     = length(google_compute_forwarding_rule.this) == 0
    error_message = "Without an attachment there is nothing to lead to."
  }

  assert {
    condition     = output.waiting_for == tolist(["medgemma"]) && output.private_network["medgemma"].ready == false
    error_message = "The outputs must say what is missing."
  }

  assert {
    condition     = google_dns_record_set.this["medgemma"].name == "medgemma.medport.internal." && google_dns_record_set.this["medgemma"].rrdatas == tolist(["10.20.0.5"])
    error_message = "The name must lead to the address."
  }

  assert {
    condition     = google_dns_record_set.this["medgemma"].type == "A" && google_dns_managed_zone.this.visibility == "private" && google_compute_address.this["medgemma"].address_type == "INTERNAL"
    error_message = "Name and address must be inner ones."
  }
}

run "after_it_the_rule_leads_to_the_attachment" {
  command = apply

  variables {
    endpoints = { medgemma = { service_attachment = "projects/producer/regions/europe-west4/serviceAttachments/a" } }
  }

  assert {
    condition     = google_compute_forwarding_rule.this["medgemma"].target == "projects/producer/regions/europe-west4/serviceAttachments/a"
    error_message = "The rule must lead to the attachment."
  }

  assert {
    condition     = google_compute_forwarding_rule.this["medgemma"].load_balancing_scheme == "" && google_compute_forwarding_rule.this["medgemma"].recreate_closed_psc && google_compute_forwarding_rule.this["medgemma"].no_automate_dns_zone
    error_message = "It must be a Private Service Connect rule, made anew when its producer was, under our name alone."
  }

  assert {
    condition     = google_compute_forwarding_rule.this["medgemma"].ip_address == google_compute_address.this["medgemma"].self_link
    error_message = "The rule must have the endpoint's address."
  }

  assert {
    condition     = length(output.waiting_for) == 0 && output.private_network["medgemma"] == { address = "10.20.0.5", host = "medgemma.medport.internal", ready = true }
    error_message = "The outputs must say that it is ready."
  }
}

run "each_endpoint_waits_for_its_own" {
  command = plan

  variables {
    endpoints = {
      medgemma  = { service_attachment = "projects/producer/regions/europe-west4/serviceAttachments/a" }
      medsiglip = {}
    }
  }

  assert {
    condition     = keys(google_compute_forwarding_rule.this) == ["medgemma"] && output.waiting_for == tolist(["medsiglip"])
    error_message = "One endpoint must not wait for another."
  }
}

run "an_own_network_lets_nothing_out_but_calls" {
  command = plan

  assert {
    condition     = length(google_compute_firewall.no_way_out) == 1 && google_compute_firewall.no_way_out[0].destination_ranges == toset(["0.0.0.0/0"])
    error_message = "Everything must be denied first."
  }

  assert {
    condition     = one(google_compute_firewall.to_endpoints[0].allow).ports == tolist(["443"]) && one(google_compute_firewall.to_endpoints[0].allow).protocol == "tcp" && google_compute_firewall.to_endpoints[0].destination_ranges == toset([var.ip_cidr_range, "199.36.153.8/30"])
    error_message = "Calls to the endpoints, and for tokens, must pass."
  }

  assert {
    condition     = google_compute_firewall.to_endpoints[0].priority < google_compute_firewall.no_way_out[0].priority
    error_message = "The lower number wins: calls must come before the denial."
  }

  assert {
    condition     = google_compute_subnetwork.this.log_config[0].flow_sampling == 0.5 && google_compute_subnetwork.this.private_ip_google_access
    error_message = "The flows must be logged."
  }

  assert {
    condition     = google_compute_network.this[0].auto_create_subnetworks == false
    error_message = "A network must not bring a subnet of each region."
  }

  assert {
    condition     = google_compute_firewall.no_way_out[0].direction == "EGRESS" && google_compute_firewall.to_endpoints[0].direction == "EGRESS" && one(google_compute_firewall.no_way_out[0].deny).protocol == "all"
    error_message = "The rules must be of the way out, and deny all."
  }
}

run "a_given_network_is_used_and_left_as_it_is" {
  command = plan

  variables {
    network_id = "projects/host-project/global/networks/clinic"
  }

  assert {
    condition     = length(google_compute_network.this) == 0 && length(google_compute_firewall.no_way_out) == 0 && length(google_compute_firewall.to_endpoints) == 0
    error_message = "In a network of others neither network nor firewall is ours to make."
  }

  assert {
    condition     = google_compute_subnetwork.this.network == var.network_id && output.id == var.network_id
    error_message = "The given network must be used."
  }
}
