variable "additional_services" {
  description = "Services to switch on besides those the module needs, for example `bigquery.googleapis.com`, with which its agent may use the key too."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for service in var.additional_services : can(regex("^[a-z][a-z0-9-]*\\.googleapis\\.com$", service))])
    error_message = "Services are named like bigquery.googleapis.com."
  }
}

variable "deletion_protection" {
  description = "Refuse to destroy key, weights, images and secrets. Lift it by an apply of its own before a destroy."
  type        = bool
  default     = true
  nullable    = false
}

variable "deployer_impersonators" {
  description = "Who may act as the deployer: `user:…`, `group:…`, `serviceAccount:…` or a `principal…://` of a workload identity pool."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for member in var.deployer_impersonators : can(regex("^((user|group|serviceAccount):[^:]+@[^:]+|principal(Set)?://.+)$", member))])
    error_message = "deployer_impersonators must be user:…, group:…, serviceAccount:… or principal…://…; never allUsers or a whole domain."
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

  validation {
    condition     = contains(["SOFTWARE", "HSM"], var.key.protection_level)
    error_message = "key.protection_level must be SOFTWARE or HSM."
  }

  validation {
    condition     = var.key.rotation_days >= 1 && floor(var.key.rotation_days) == var.key.rotation_days
    error_message = "key.rotation_days must be a whole number of days, at least 1."
  }

  validation {
    condition     = var.key.destroy_after_days >= 1 && var.key.destroy_after_days <= 120 && floor(var.key.destroy_after_days) == var.key.destroy_after_days
    error_message = "key.destroy_after_days must be a whole number from 1 to 120."
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
  description = "Region of everything that has one: key, weights, images and secrets must lie where the endpoints are."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "location must be a region such as europe-west4, not a zone or multi-region."
  }
}

variable "prefix" {
  description = "Start of every name made here."
  type        = string
  default     = "medport"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.prefix))
    error_message = "prefix must be 3 to 20 of the characters a-z, 0-9 and -, starting with a letter: account ids hold 30."
  }
}

variable "project_id" {
  description = "Project to lay the foundation in."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be a project id (6 to 30 of a-z, 0-9, -), not a number or a name."
  }
}

variable "registry" {
  description = "The image mirror: its id (null: from the prefix); after how many days images are deleted (null: never) except those whose digest, `sha256:…`, is in `keep_digests`."
  type = object({
    delete_after_days = optional(number)
    keep_digests      = optional(set(string), [])
    repository_id     = optional(string)
  })
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for digest in var.registry.keep_digests : can(regex("^sha256:[0-9a-f]{64}$", digest))])
    error_message = "registry.keep_digests must be sha256: and 64 hexadecimal digits each."
  }

  validation {
    condition     = var.registry.delete_after_days == null || length(var.registry.keep_digests) > 0
    error_message = "registry.delete_after_days without keep_digests would delete images in use."
  }

  validation {
    condition     = var.registry.delete_after_days == null || try(var.registry.delete_after_days >= 1 && floor(var.registry.delete_after_days) == var.registry.delete_after_days, false)
    error_message = "registry.delete_after_days must be a whole number of days, at least 1."
  }

  validation {
    condition     = var.registry.repository_id == null || can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.registry.repository_id))
    error_message = "registry.repository_id must be 1 to 63 of the characters a-z, 0-9 and -, starting with a letter."
  }
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
  description = "Secret containers by name. With a `value_version`, `\"1\"` and counting, Terraform writes the value of `secret_values`; without, the value is added outside of Terraform."
  type = map(object({
    value_version = optional(string)
  }))
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for name in keys(var.secrets) : can(regex("^[a-z][a-z0-9-]{0,62}$", name))])
    error_message = "Secrets are named by a-z, 0-9 and -, starting with a letter."
  }

  validation {
    condition     = alltrue([for secret in values(var.secrets) : secret.value_version == null || can(regex("^[1-9][0-9]*$", secret.value_version))])
    error_message = "value_version must be a whole number in quotes: some versions of the provider want a number there, some a text."
  }
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

  validation {
    condition     = var.weights_bucket.name == null || can(regex("^[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]$", var.weights_bucket.name))
    error_message = "weights_bucket.name must be 3 to 63 of the characters a-z, 0-9, _ and -."
  }

  validation {
    condition     = !can(regex("^goog|google", coalesce(var.weights_bucket.name, "-")))
    error_message = "A bucket's name may not start with goog or contain google."
  }

  validation {
    condition     = var.weights_bucket.soft_delete_days == 0 || (var.weights_bucket.soft_delete_days >= 7 && var.weights_bucket.soft_delete_days <= 90)
    error_message = "weights_bucket.soft_delete_days must be 0 or 7 to 90."
  }

  validation {
    condition     = var.weights_bucket.retention_days == null || try(var.weights_bucket.retention_days >= 1 && var.weights_bucket.retention_days <= 36500, false)
    error_message = "weights_bucket.retention_days must be 1 to 36500."
  }

  validation {
    condition     = !var.weights_bucket.retention_locked || var.weights_bucket.retention_days != null
    error_message = "weights_bucket.retention_locked locks retention_days: give them."
  }
}
