# The provider takes address and credential from the environment, so that neither is in a file or a plan:
#
#   GOOGLE_VERTEX_AI_CUSTOM_ENDPOINT  https://HOST:PORT/v1/   (version and last slash belong to it)
#   GOOGLE_OAUTH_ACCESS_TOKEN         an API key of the local server; with it no Google credential is looked for
#   SSL_CERT_FILE                     where the server's certificate is of a private CA
provider "google" {
  project                   = var.project_id
  region                    = var.location
  vertex_ai_custom_endpoint = var.control_plane_url
  default_labels            = var.labels

  # Local operations end in seconds.
  poll_interval = "1s"
}
