# Two identities without keys: `serving` runs the containers, `deployer` moves models and traffic. Grants are members
# only: a binding or policy would evict the grants of Google's own agents.
locals {
  # Known before the accounts are, so that a first plan can name them.
  deployer = "${var.prefix}-deployer@${var.project_id}.iam.gserviceaccount.com"
  serving  = "${var.prefix}-serving@${var.project_id}.iam.gserviceaccount.com"
}

resource "google_service_account" "serving" {
  project      = var.project_id
  account_id   = "${var.prefix}-serving"
  display_name = "Runs the model containers"
  description  = "Reads weights, writes logs and metrics; nothing else."

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "serving" {
  for_each = toset(["roles/logging.logWriter", "roles/monitoring.metricWriter"])

  project = var.project_id
  role    = each.key
  member  = google_service_account.serving.member
}

resource "google_service_account" "deployer" {
  project      = var.project_id
  account_id   = "${var.prefix}-deployer"
  display_name = "Deploys models"
  description  = "Uploads model versions, deploys them and moves traffic."

  depends_on = [google_project_service.this]
}

# Narrower than the predefined admin role: no training, no data sets, no feature store, no change of access.
resource "google_project_iam_custom_role" "deployer" {
  project     = var.project_id
  role_id     = "${replace(var.prefix, "-", "_")}_deployer"
  title       = "Model deployer (${var.prefix})"
  description = "Upload, deploy and undeploy models; move traffic; read quotas, metrics and operations."
  stage       = "GA"

  permissions = [
    "aiplatform.endpoints.create",
    "aiplatform.endpoints.delete",
    "aiplatform.endpoints.deploy",
    "aiplatform.endpoints.get",
    "aiplatform.endpoints.list",
    "aiplatform.endpoints.predict",
    "aiplatform.endpoints.undeploy",
    "aiplatform.endpoints.update",
    "aiplatform.locations.get",
    "aiplatform.locations.list",
    "aiplatform.models.delete",
    "aiplatform.models.get",
    "aiplatform.models.list",
    "aiplatform.models.update",
    "aiplatform.models.upload",
    "aiplatform.operations.list",
    "monitoring.timeSeries.list",
    "resourcemanager.projects.get",
    "serviceusage.quotas.get",
    "serviceusage.services.get",
    "serviceusage.services.list",
  ]

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "deployer" {
  project = var.project_id
  role    = google_project_iam_custom_role.deployer.name
  member  = google_service_account.deployer.member
}

# To deploy a model that runs as `serving` the deployer must be allowed to act as it, and as nobody else.
resource "google_service_account_iam_member" "deployer_acts_as_serving" {
  service_account_id = google_service_account.serving.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.deployer.member
}

resource "google_service_account_iam_member" "impersonators" {
  for_each = var.deployer_impersonators

  service_account_id = google_service_account.deployer.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.key
}
