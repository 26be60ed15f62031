variable "accept_eula" {
  description = "You have read and accept the model's terms. Never defaulted."
  type        = bool
  nullable    = false
}

variable "args" {
  description = "Arguments of the container."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "display_name" {
  description = "Name of endpoint and model."
  type        = string
  default     = "medgemma-4b-it"
  nullable    = false
}

variable "image_uri" {
  description = "Serving image by digest."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[^@]+@sha256:[0-9a-f]{64}$", var.image_uri))
    error_message = "image_uri must be NAME@sha256:DIGEST; tags move."
  }
}

variable "location" {
  description = "Region."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "location must be a region such as europe-west4, not a zone or multi-region."
  }
}

variable "machine" {
  description = "Machine type, accelerator and their number."
  type = object({
    accelerator = optional(string, "NVIDIA_L4")
    count       = optional(number, 1)
    type        = optional(string, "g2-standard-12")
  })
  default  = {}
  nullable = false

  validation {
    condition     = contains([1, 2, 4, 8], var.machine.count)
    error_message = "machine.count must be 1, 2, 4 or 8."
  }
}

variable "project_id" {
  description = "Project."
  type        = string
  nullable    = false
}

variable "publisher_model_name" {
  description = "Model of the Model Garden, `publishers/P/models/M@VERSION`."
  type        = string
  default     = "publishers/google/models/medgemma@medgemma-4b-it"
  nullable    = false

  validation {
    condition     = can(regex("^publishers/[^/]+/models/[^/@]+@[^/@]+$", var.publisher_model_name))
    error_message = "publisher_model_name must be publishers/P/models/M@VERSION, with a version."
  }
}

variable "replicas" {
  description = "Least and most replicas."
  type = object({
    max = optional(number, 1)
    min = optional(number, 1)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.replicas.min >= 1 && var.replicas.max >= var.replicas.min
    error_message = "replicas.min must be at least 1, replicas.max at least replicas.min."
  }
}

variable "routes" {
  description = "Paths of the container."
  type = object({
    health  = optional(string, "/health")
    predict = optional(string, "/predict")
  })
  default  = {}
  nullable = false
}

variable "shared_memory_mb" {
  description = "Shared memory of the container, in MB."
  type        = number
  default     = 16384
  nullable    = false
}
