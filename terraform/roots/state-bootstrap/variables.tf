variable "bucket_name" {
  description = "Name of the bucket; null: `PROJECT-PREFIX-state`."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null || can(regex("^[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name must be 3 to 63 of the characters a-z, 0-9, _ and -."
  }
}

variable "labels" {
  description = "Labels of bucket and key."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Labels must have at most 63 of the characters a-z, 0-9, _ and -; a key starts with a letter."
  }
}

variable "location" {
  description = "Region of bucket and key."
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
    error_message = "prefix must be 3 to 20 of the characters a-z, 0-9 and -, starting with a letter."
  }
}

variable "project_id" {
  description = "Project that holds the states."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be a project id (6 to 30 of a-z, 0-9, -), not a number or a name."
  }
}

variable "users" {
  description = "Who may read and write states: `user:…`, `group:…`, `serviceAccount:…` or a `principal…://` of a workload identity pool."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for member in var.users : can(regex("^((user|group|serviceAccount):[^:]+@[^:]+|principal(Set)?://.+)$", member))])
    error_message = "users must be user:…, group:…, serviceAccount:… or principal…://…; never allUsers or a whole domain."
  }
}
