variable "audit" {
  description = "Keep the audit log in an encrypted dataset; null: leave it to Google's own retention. `data_access` also logs who read and called what: volume costs, and entries can hold request metadata."
  type = object({
    data_access    = optional(bool, false)
    kms_key_name   = string
    retention_days = optional(number, 2192)
  })
  default = null

  validation {
    condition     = var.audit == null || can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.audit.kms_key_name))
    error_message = "audit.kms_key_name must be projects/P/locations/L/keyRings/R/cryptoKeys/K."
  }

  validation {
    condition     = var.audit == null || try(split("/", var.audit.kms_key_name)[3] == var.location, true)
    error_message = "audit.kms_key_name must lie in location."
  }

  validation {
    condition     = var.audit == null || try(var.audit.retention_days >= 1 && floor(var.audit.retention_days) == var.audit.retention_days, false)
    error_message = "audit.retention_days must be a whole number of days, at least 1."
  }
}

variable "budget" {
  description = "Monthly budget of the project, with mails at 50, 90 and 100 % and when 100 % are forecast; null: none."
  type = object({
    billing_account = string
    currency        = optional(string, "EUR")
    monthly_amount  = number
    project_number  = string
  })
  default = null

  validation {
    condition     = var.budget == null || can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.budget.billing_account))
    error_message = "budget.billing_account must be like 0A1B2C-3D4E5F-678901."
  }

  validation {
    condition     = var.budget == null || can(regex("^[0-9]+$", var.budget.project_number))
    error_message = "budget.project_number must be the project's number: budgets do not take ids."
  }

  validation {
    condition     = var.budget == null || can(regex("^[A-Z]{3}$", var.budget.currency))
    error_message = "budget.currency must be a code of three letters, the billing account's own."
  }

  validation {
    condition     = var.budget == null || try(var.budget.monthly_amount >= 1 && floor(var.budget.monthly_amount) == var.budget.monthly_amount, false)
    error_message = "budget.monthly_amount must be a whole number, at least 1."
  }
}

variable "deletion_protection" {
  description = "Refuse to destroy the audit log. Lift it by an apply of its own before a destroy."
  type        = bool
  default     = true
  nullable    = false
}

variable "deployer" {
  description = "Address of the account that deploys; changes by others raise an alert. Null: no such alert."
  type        = string
  default     = null

  validation {
    condition     = var.deployer == null || can(regex("^[^@\"]+@[^@\"]+$", var.deployer))
    error_message = "deployer must be an account's address."
  }
}

variable "endpoints" {
  description = "Endpoints to watch, name => number."
  type        = map(string)
  nullable    = false

  validation {
    condition     = length(var.endpoints) > 0
    error_message = "There must be an endpoint to watch."
  }

  validation {
    condition     = alltrue([for id in values(var.endpoints) : can(regex("^[1-9][0-9]{0,9}$", id))])
    error_message = "endpoints must be name => number, 1 to 10 digits without a leading zero."
  }
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
  description = "Region of the audit log."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "location must be a region such as europe-west4, not a zone or multi-region."
  }
}

variable "notification_channels" {
  description = "Existing channels to tell, `projects/P/notificationChannels/N`."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for channel in var.notification_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "notification_channels must be projects/P/notificationChannels/N."
  }
}

variable "notification_emails" {
  description = "Addresses to tell; each gets a channel."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for address in var.notification_emails : can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", address))])
    error_message = "notification_emails must be mail addresses."
  }
}

variable "prefix" {
  description = "Start of every name made here."
  type        = string
  default     = "medport"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.prefix))
    error_message = "prefix must be 3 to 20 of the characters a-z, 0-9 and -, starting with a letter."
  }
}

variable "project_id" {
  description = "Project of the endpoints."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be a project id (6 to 30 of a-z, 0-9, -), not a number or a name."
  }
}

variable "thresholds" {
  description = "When to raise an alert: share of accelerator time (0 to 1), how long a value must stand, share of server errors (0 to 1), 95th percentile of latency, how long without a request."
  type = object({
    duration_s  = optional(number, 300)
    duty_cycle  = optional(number, 0.9)
    error_ratio = optional(number, 0.05)
    p95_ms      = optional(number, 8000)
    silence_s   = optional(number, 3600)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.thresholds.error_ratio > 0 && var.thresholds.error_ratio < 1
    error_message = "thresholds.error_ratio must be between 0 and 1."
  }

  validation {
    condition     = var.thresholds.duty_cycle > 0 && var.thresholds.duty_cycle < 1
    error_message = "thresholds.duty_cycle must be between 0 and 1."
  }

  validation {
    condition     = var.thresholds.p95_ms > 0
    error_message = "thresholds.p95_ms must be above 0."
  }

  validation {
    condition     = var.thresholds.duration_s >= 0 && var.thresholds.duration_s % 60 == 0
    error_message = "thresholds.duration_s must be whole minutes."
  }

  validation {
    condition     = var.thresholds.silence_s >= 180 && var.thresholds.silence_s <= 84600 && var.thresholds.silence_s % 60 == 0
    error_message = "thresholds.silence_s must be whole minutes, from 180 to 84600 (23.5 hours)."
  }
}
