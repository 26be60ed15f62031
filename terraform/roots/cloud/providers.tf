provider "google" {
  project        = var.project_id
  default_labels = var.labels

  # The host of each call comes from here, not from a resource's location.
  region = var.location
}
