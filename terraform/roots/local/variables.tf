variable "control_plane_url" {
  description = "Address of the local control plane, ending in `/v1/`; null: from GOOGLE_VERTEX_AI_CUSTOM_ENDPOINT."
  type        = string
  default     = null

  validation {
    condition     = var.control_plane_url == null || can(regex("^https?://[^/]+(/.*)?/v1(beta1)?/$", var.control_plane_url))
    error_message = "control_plane_url must be like https://HOST:PORT/v1/, with the version and the last slash."
  }

  validation {
    condition     = var.control_plane_url == null || !can(regex("^https?://[^/]*googleapis\\.com", var.control_plane_url))
    error_message = "control_plane_url points at Google: use the cloud root for that."
  }

  validation {
    condition     = var.control_plane_url == null || can(regex("^(https://|http://(localhost|127\\.0\\.0\\.1|\\[::1\\])[:/])", var.control_plane_url))
    error_message = "control_plane_url must be https, but on this machine itself: the API key goes along with each call."
  }
}

variable "deletion_protection" {
  description = "Refuse to destroy or replace endpoints. Lift it by an apply of its own before a destroy."
  type        = bool
  default     = false
  nullable    = false
}

variable "endpoints" {
  description = "Endpoints by name: number, way in (`dedicated` or `shared`), display name (null: the name), description, labels."
  type = map(object({
    description  = optional(string, "Serving of a medical model.")
    display_name = optional(string)
    id           = string
    labels       = optional(map(string), {})
    mode         = optional(string, "dedicated")
  }))
  nullable = false

  validation {
    condition     = alltrue([for endpoint in values(var.endpoints) : contains(["dedicated", "shared"], endpoint.mode)])
    error_message = "endpoints: mode must be dedicated or shared; there is no Private Service Connect here."
  }

  validation {
    condition     = length(distinct([for endpoint in values(var.endpoints) : endpoint.id])) == length(var.endpoints)
    error_message = "endpoints: each needs a number of its own."
  }
}

variable "labels" {
  description = "Labels of every endpoint."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Labels must have at most 63 of the characters a-z, 0-9, _ and -; a key starts with a letter."
  }
}

variable "location" {
  description = "Location as the local control plane calls itself."
  type        = string
  nullable    = false
}

variable "project_id" {
  description = "Project as the local control plane calls itself."
  type        = string
  nullable    = false
}
