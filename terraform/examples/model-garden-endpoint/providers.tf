provider "google" {
  project = var.project_id

  # The resource has no region of its own: this must equal its location, or it calls another region's host.
  region = var.location
}
