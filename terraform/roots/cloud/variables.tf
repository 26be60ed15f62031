variable "allowed_locations" {
  description = "Regions that the site's policy allows; empty: any."
  type        = set(string)
  default     = []
  nullable    = false
}

variable "audit" {
  description = "Keep the audit log in an encrypted dataset; null: leave it to Google's own retention. `data_access` also logs who read and called what."
  type = object({
    data_access    = optional(bool, false)
    retention_days = optional(number, 2192)
  })
  default = null
}

variable "budget" {
  description = "Monthly budget of the project; null: none."
  type = object({
    billing_account = string
    currency        = optional(string, "EUR")
    monthly_amount  = number
  })
  default = null
}

variable "deletion_protection" {
  description = "Refuse to destroy or replace what holds data or serves. Lift it by an apply of its own before a destroy."
  type        = bool
  default     = true
  nullable    = false
}

variable "deployer_impersonators" {
  description = "Who may act as the deployer: `user:…`, `group:…`, `serviceAccount:…` or a `principal…://` of a workload identity pool."
  type        = set(string)
  default     = []
  nullable    = false
}

variable "endpoints" {
  description = "Endpoints by name: number, way in, display name (null: the name), description, labels, request logging (null: none). See `modules/endpoint`."
  type = map(object({
    access = optional(object({
      mode             = optional(string, "dedicated")
      allowed_projects = optional(set(string), [])
      automation       = optional(map(string), {})
    }), {})
    description  = optional(string, "Serving of a medical model.")
    display_name = optional(string)
    id           = string
    labels       = optional(map(string), {})
    request_logging = optional(object({
      accept_patient_data = bool
      retention_days      = number
      sampling_rate       = optional(number, 1)
    }))
  }))
  nullable = false

  validation {
    condition     = length(var.endpoints) > 0
    error_message = "Give at least one endpoint."
  }

  validation {
    condition     = length(distinct([for endpoint in values(var.endpoints) : endpoint.id])) == length(var.endpoints)
    error_message = "endpoints: each needs a number of its own."
  }
}

variable "key" {
  description = "The key: `SOFTWARE` or `HSM`, days between rotations, days between the destruction of a version and the loss of its data."
  type = object({
    destroy_after_days = optional(number, 30)
    protection_level   = optional(string, "SOFTWARE")
    rotation_days      = optional(number, 90)
  })
  default  = {}
  nullable = false
}

variable "labels" {
  description = "Labels of everything that takes labels."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Labels must have at most 63 of the characters a-z, 0-9, _ and -; a key starts with a letter."
  }
}

variable "location" {
  description = "Region of everything that has one."
  type        = string
  nullable    = false

  validation {
    condition     = length(var.allowed_locations) == 0 || contains(var.allowed_locations, var.location)
    error_message = "location is not among allowed_locations."
  }
}

variable "notification_channels" {
  description = "Existing channels to tell of alerts, `projects/P/notificationChannels/N`."
  type        = set(string)
  default     = []
  nullable    = false
}

variable "notification_emails" {
  description = "Addresses to tell of alerts."
  type        = set(string)
  default     = []
  nullable    = false
}

variable "prefix" {
  description = "Start of every name made here."
  type        = string
  default     = "medport"
  nullable    = false
}

variable "private_network" {
  description = "For endpoints of mode `private`: domain, range, existing network (null: make one), and by endpoint the service attachment, known after the first deployment: give it then and apply again."
  type = object({
    dns_domain          = optional(string, "medport.internal")
    ip_cidr_range       = optional(string, "10.20.0.0/24")
    network_id          = optional(string)
    service_attachments = optional(map(string), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for name in keys(var.private_network.service_attachments) : try(var.endpoints[name].access.mode == "private", false)])
    error_message = "private_network.service_attachments names an endpoint that is not private, or not there."
  }
}

variable "project_id" {
  description = "Project to provision in."
  type        = string
  nullable    = false
}

variable "registry" {
  description = "The image mirror: its id (null: from the prefix), cleanup after days (null: never), digests to keep then."
  type = object({
    delete_after_days = optional(number)
    keep_digests      = optional(set(string), [])
    repository_id     = optional(string)
  })
  default  = {}
  nullable = false
}

variable "secret_values" {
  description = "Values of the secrets that have a `value_version`, by name. Ephemeral: in no plan and no state; give them again at apply."
  type        = map(string)
  default     = {}
  nullable    = false
  sensitive   = true
  ephemeral   = true

  # Without this, a value that was forgotten is an index that terraform does not find.
  validation {
    condition     = alltrue([for name, secret in var.secrets : secret.value_version == null || contains(keys(var.secret_values), name)])
    error_message = "secret_values: each secret with a value_version needs its value, at plan and again at apply: TF_VAR_secret_values."
  }
}

variable "secrets" {
  description = "Secret containers by name. With a `value_version`, `\"1\"` and counting, Terraform writes the value of `secret_values`."
  type = map(object({
    value_version = optional(string)
  }))
  default  = {}
  nullable = false
}

variable "thresholds" {
  description = "When to raise an alert. See `modules/observability`."
  type = object({
    duration_s  = optional(number, 300)
    duty_cycle  = optional(number, 0.9)
    error_ratio = optional(number, 0.05)
    p95_ms      = optional(number, 8000)
    silence_s   = optional(number, 3600)
  })
  default  = {}
  nullable = false
}

variable "weights_bucket" {
  description = "The bucket: its name (null: from project and prefix), days a deleted file can be brought back, days a file cannot be deleted at all (null: none) and whether that is locked for ever."
  type = object({
    name             = optional(string)
    retention_days   = optional(number)
    retention_locked = optional(bool, false)
    soft_delete_days = optional(number, 7)
  })
  default  = {}
  nullable = false
}
