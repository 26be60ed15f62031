# The project as a serving platform: services on, and who Google's own agents are.
data "google_project" "this" {
  # No depends_on: it would make the number unknown, and each grant a replacement, whenever a service is added.
  project_id = var.project_id
}

# Reading these two makes Google create the agents; it has no other sign of life before first use.
data "google_storage_project_service_account" "this" {
  project = google_project_service.this["storage.googleapis.com"].project
}

data "google_bigquery_default_service_account" "this" {
  count = local.with_bigquery ? 1 : 0

  project = google_project_service.this["bigquery.googleapis.com"].project
}

locals {
  services = toset(concat([
    "aiplatform.googleapis.com",
    "artifactregistry.googleapis.com",
    "cloudkms.googleapis.com",
    "compute.googleapis.com",
    "dns.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "secretmanager.googleapis.com",
    "serviceusage.googleapis.com",
    "storage.googleapis.com",
  ], tolist(var.additional_services)))

  number = data.google_project.this.number

  with_bigquery = contains(var.additional_services, "bigquery.googleapis.com")

  # Agents of Google's that must read or write our bytes, where their service is used.
  agents = merge(
    {
      aiplatform       = "serviceAccount:service-${local.number}@gcp-sa-aiplatform.iam.gserviceaccount.com"
      artifactregistry = "serviceAccount:service-${local.number}@gcp-sa-artifactregistry.iam.gserviceaccount.com"
      storage          = data.google_storage_project_service_account.this.member
    },
    length(var.secrets) == 0 ? {} : {
      secretmanager = "serviceAccount:service-${local.number}@gcp-sa-secretmanager.iam.gserviceaccount.com"
    },
    local.with_bigquery ? { bigquery = data.google_bigquery_default_service_account.this[0].member } : {},
  )

  deletion_policy = var.deletion_protection ? "PREVENT" : "DELETE"
}

resource "google_project_service" "this" {
  for_each = local.services

  project = var.project_id
  service = each.key

  # Others in the project may use them: a destroy must not switch them off.
  disable_on_destroy = false
}
