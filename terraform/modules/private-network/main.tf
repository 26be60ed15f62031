# The consumer's side of private endpoints: a network of its own or a subnet in yours, one inner address and one name
# an endpoint. The service attachment that an address leads to exists only after the first deployment, so the rule
# comes with a second apply; until then the name leads nowhere.
locals {
  network_id = var.network_id == null ? google_compute_network.this[0].id : var.network_id
  zone       = "${var.dns_domain}."

  # private.googleapis.com, as Google documents it.
  google_apis = "199.36.153.8/30"
}

resource "google_compute_network" "this" {
  count = var.network_id == null ? 1 : 0

  project                 = var.project_id
  name                    = var.prefix
  description             = "Callers of private model endpoints."
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "this" {
  project                  = var.project_id
  name                     = "${var.prefix}-endpoints"
  description              = "Inner addresses of private model endpoints."
  region                   = var.location
  network                  = local.network_id
  ip_cidr_range            = var.ip_cidr_range
  private_ip_google_access = true

  log_config {
    aggregation_interval = "INTERVAL_5_MIN"
    flow_sampling        = 0.5
    metadata             = "INCLUDE_ALL_METADATA"
  }
}

resource "google_compute_address" "this" {
  for_each = var.endpoints

  project      = var.project_id
  name         = "${var.prefix}-${each.key}"
  region       = var.location
  subnetwork   = google_compute_subnetwork.this.id
  address_type = "INTERNAL"
}

resource "google_compute_forwarding_rule" "this" {
  for_each = { for name, endpoint in var.endpoints : name => endpoint if endpoint.service_attachment != null }

  project    = var.project_id
  name       = "${var.prefix}-${each.key}"
  region     = var.location
  network    = local.network_id
  ip_address = google_compute_address.this[each.key].self_link
  target     = each.value.service_attachment

  # Empty, not left out: that is what makes the rule a Private Service Connect one.
  load_balancing_scheme = ""

  # A producer that was made anew closes the old connection for good.
  recreate_closed_psc = true

  # The name is ours, below.
  no_automate_dns_zone = true

  lifecycle {
    precondition {
      condition     = split("/", each.value.service_attachment)[3] == var.location
      error_message = "The service attachment of ${each.key} lies in another region than ${var.location}; a rule cannot cross regions."
    }
  }
}

resource "google_dns_managed_zone" "this" {
  project     = var.project_id
  name        = var.prefix
  description = "Names of private model endpoints."
  dns_name    = local.zone
  visibility  = "private"

  private_visibility_config {
    networks {
      network_url = local.network_id
    }
  }
}

resource "google_dns_record_set" "this" {
  for_each = var.endpoints

  project      = var.project_id
  managed_zone = google_dns_managed_zone.this.name
  name         = "${each.key}.${local.zone}"
  type         = "A"
  ttl          = 300
  rrdatas      = [google_compute_address.this[each.key].address]
}

# Google's default lets everything out of a network; one made here lets out calls to the endpoints and, for tokens,
# to Google's own API addresses.
resource "google_compute_firewall" "no_way_out" {
  count = var.network_id == null ? 1 : 0

  project            = var.project_id
  name               = "${var.prefix}-no-way-out"
  description        = "Nothing leaves but what a rule of a lower number allows."
  network            = local.network_id
  direction          = "EGRESS"
  priority           = 65000
  destination_ranges = ["0.0.0.0/0"]

  deny {
    protocol = "all"
  }

  log_config {
    metadata = "INCLUDE_ALL_METADATA"
  }
}

resource "google_compute_firewall" "to_endpoints" {
  count = var.network_id == null ? 1 : 0

  project            = var.project_id
  name               = "${var.prefix}-to-endpoints"
  description        = "HTTPS to the endpoints' addresses and to Google's APIs."
  network            = local.network_id
  direction          = "EGRESS"
  priority           = 1000
  destination_ranges = [var.ip_cidr_range, local.google_apis]

  allow {
    protocol = "tcp"
    ports    = ["443"]
  }
}
