provider "google" {
  project        = var.project_id
  region         = var.location
  default_labels = var.labels
}
