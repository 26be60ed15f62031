variable "access" {
  description = "The way in. `dedicated`: an own public host name (10 MB bodies, long calls); `shared`: the region's host (1.5 MB, 60 s); `private`: Private Service Connect, for the projects in `allowed_projects`, where `automation` names project => network (`projects/NUMBER/global/networks/NAME`) in which Google makes the address itself."
  type = object({
    mode             = optional(string, "dedicated")
    allowed_projects = optional(set(string), [])
    automation       = optional(map(string), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = contains(["dedicated", "shared", "private"], var.access.mode)
    error_message = "access.mode must be dedicated, shared or private."
  }

  validation {
    condition     = (var.access.mode == "private") == (length(var.access.allowed_projects) > 0)
    error_message = "access.allowed_projects belongs to mode private, which needs at least one project."
  }

  validation {
    condition     = length(setsubtract(keys(var.access.automation), var.access.allowed_projects)) == 0
    error_message = "Each project in access.automation must be in access.allowed_projects too."
  }

  validation {
    condition     = alltrue([for network in values(var.access.automation) : can(regex("^projects/[^/]+/global/networks/[^/]+$", network))])
    error_message = "access.automation must name networks as projects/NUMBER/global/networks/NAME."
  }
}

variable "deletion_protection" {
  description = "Refuse to destroy or replace the endpoint and the request log. Lift it by an apply of its own before a destroy."
  type        = bool
  default     = true
  nullable    = false
}

variable "description" {
  description = "What the endpoint is for."
  type        = string
  default     = "Serving of a medical model."
  nullable    = false
}

variable "display_name" {
  description = "The name people see; may change."
  type        = string
  nullable    = false

  validation {
    condition     = length(var.display_name) >= 1 && length(var.display_name) <= 128
    error_message = "display_name must have 1 to 128 characters."
  }
}

variable "endpoint_id" {
  description = "The endpoint's number, chosen by you: 1 to 10 digits, no leading zero. A change replaces the endpoint."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[1-9][0-9]{0,9}$", var.endpoint_id))
    error_message = "endpoint_id must be 1 to 10 digits without a leading zero."
  }
}

variable "kms_key_name" {
  description = "Key for the endpoint and its request log, `projects/P/locations/L/keyRings/R/cryptoKeys/K`, in `location`; null: Google's own keys. A change replaces the endpoint."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_name == null || can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key_name))
    error_message = "kms_key_name must be projects/P/locations/L/keyRings/R/cryptoKeys/K."
  }
}

variable "labels" {
  description = "Labels of the endpoint. Labels that others set are kept."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Labels must have at most 63 of the characters a-z, 0-9, _ and -; a key starts with a letter. Write a sha256 in base32."
  }

  validation {
    condition     = length(var.labels) <= 60
    error_message = "At most 60 labels: the service takes 64, and the provider and the deployment tool add some."
  }

  validation {
    condition     = alltrue([for key in keys(var.labels) : !can(regex("^(goog-|medport-(rev|image|snap|lock)$|medport-d-)", key))])
    error_message = "Labels goog-… are the provider's; medport-rev, -image, -snap, -lock and -d-… are the deployment's, which writes what serves."
  }
}

variable "location" {
  description = "Region, for example `europe-west4`. A change replaces the endpoint."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "location must be a region such as europe-west4, not a zone or multi-region."
  }
}

variable "project_id" {
  description = "Project that holds the endpoint."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be a project id (3 to 30 of a-z, 0-9, -; on Google Cloud 6 to 30), not a number."
  }
}

variable "request_logging" {
  description = "Log requests and answers, which hold images and prompts of patients, to an encrypted dataset; null: no logging. `accept_patient_data` must be said; `sampling_rate` is the share logged, above 0 and at most 1."
  type = object({
    accept_patient_data = bool
    retention_days      = number
    sampling_rate       = optional(number, 1)
  })
  default = null

  validation {
    condition     = var.request_logging == null || try(var.request_logging.accept_patient_data, false)
    error_message = "Request logging stores images and prompts: say accept_patient_data = true, or leave request_logging out."
  }

  validation {
    condition     = var.request_logging == null || try(var.request_logging.sampling_rate > 0 && var.request_logging.sampling_rate <= 1, false)
    error_message = "request_logging.sampling_rate must be above 0 and at most 1."
  }

  validation {
    condition     = var.request_logging == null || try(var.request_logging.retention_days >= 1 && floor(var.request_logging.retention_days) == var.request_logging.retention_days, false)
    error_message = "request_logging.retention_days must be a whole number of days, at least 1."
  }
}

variable "warn_without_key" {
  description = "Warn of a public endpoint without a key of your own. A local control plane has no such keys."
  type        = bool
  default     = true
  nullable    = false
}
