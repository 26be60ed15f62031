variable "dns_domain" {
  description = "Private domain, without the last dot; each endpoint gets `NAME.DOMAIN`. Its certificate is the service's: verify against that name or a pinned CA, never switch verification off."
  type        = string
  default     = "medport.internal"
  nullable    = false

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.dns_domain))
    error_message = "dns_domain must be a domain of two or more labels, without the last dot."
  }
}

variable "endpoints" {
  description = "Private endpoints by name. `service_attachment`, `projects/P/regions/R/serviceAttachments/S`, is known after the first deployment; null until then."
  type = map(object({
    service_attachment = optional(string)
  }))
  nullable = false

  validation {
    condition     = length(var.endpoints) > 0
    error_message = "A private network needs at least one endpoint."
  }

  validation {
    condition     = alltrue([for name in keys(var.endpoints) : can(regex("^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$", name))])
    error_message = "Endpoints are named by at most 32 of a-z, 0-9 and -, starting with a letter."
  }

  validation {
    condition     = alltrue([for endpoint in values(var.endpoints) : endpoint.service_attachment == null || can(regex("^projects/[^/]+/regions/[^/]+/serviceAttachments/[^/]+$", endpoint.service_attachment))])
    error_message = "service_attachment must be projects/P/regions/R/serviceAttachments/S."
  }
}

variable "ip_cidr_range" {
  description = "Private range of the endpoints' subnet."
  type        = string
  default     = "10.20.0.0/24"
  nullable    = false

  validation {
    condition     = can(cidrnetmask(var.ip_cidr_range)) && try(cidrhost(var.ip_cidr_range, 0) == split("/", var.ip_cidr_range)[0], false)
    error_message = "ip_cidr_range must be an IPv4 network such as 10.20.0.0/24, without host bits."
  }

  validation {
    condition     = can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", var.ip_cidr_range))
    error_message = "ip_cidr_range must be private: 10/8, 172.16/12 or 192.168/16."
  }

  validation {
    condition     = try(tonumber(split("/", var.ip_cidr_range)[1]) <= 29, false)
    error_message = "ip_cidr_range must be /29 or larger; Google keeps four addresses of each subnet."
  }
}

variable "location" {
  description = "Region of the endpoints."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "location must be a region such as europe-west4, not a zone or multi-region."
  }
}

variable "network_id" {
  description = "Existing network to use, `projects/P/global/networks/N`; null: make one, closed to the outside."
  type        = string
  default     = null

  validation {
    condition     = var.network_id == null || can(regex("^projects/[^/]+/global/networks/[^/]+$", var.network_id))
    error_message = "network_id must be projects/P/global/networks/N."
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
  description = "Project of the callers' network."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be a project id (6 to 30 of a-z, 0-9, -), not a number or a name."
  }
}
