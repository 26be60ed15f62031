output "addresses" {
  description = "Inner address of each endpoint."
  value       = { for name, address in google_compute_address.this : name => address.address }
}

output "id" {
  description = "The network, `projects/P/global/networks/N`."
  value       = local.network_id
}

output "name" {
  description = "Start of every name made here."
  value       = var.prefix
}

output "private_network" {
  description = "What callers need, by endpoint: address, host name, and whether a rule leads there already."
  value = {
    for name, endpoint in var.endpoints : name => {
      address = google_compute_address.this[name].address
      host    = trimsuffix(google_dns_record_set.this[name].name, ".")
      ready   = endpoint.service_attachment != null
    }
  }

  depends_on = [google_compute_forwarding_rule.this]
}

output "waiting_for" {
  description = "Endpoints whose service attachment is still to be given, after their first deployment."
  value       = sort([for name, endpoint in var.endpoints : name if endpoint.service_attachment == null])
}
