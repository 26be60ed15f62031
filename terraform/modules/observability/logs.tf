# Counted in logs: what containers complain of, and changes that somebody else than the deployer made.
locals {
  changes = [
    "EndpointService.DeleteEndpoint",
    "EndpointService.DeployModel",
    "EndpointService.MutateDeployedModel",
    "EndpointService.UndeployModel",
    "EndpointService.UpdateEndpoint",
    "EndpointService.UpdateEndpointLongRunning",
  ]

  log_metrics = merge(
    {
      container-errors = {
        description = "Errors that serving containers logged."
        title       = "Containers log errors"
        resource    = "aiplatform.googleapis.com/Endpoint"
        filter      = "resource.type=\"aiplatform.googleapis.com/Endpoint\" AND severity>=ERROR AND resource.labels.endpoint_id=(${join(" OR ", [for id in local.endpoints : format("%q", id)])})"
      }
    },
    var.deployer == null ? {} : {
      foreign-changes = {
        description = "Changes of endpoints that the deployer did not make."
        title       = "An endpoint was changed past the deployer"
        resource    = "audited_resource"
        filter = join(" AND ", [
          "logName:\"cloudaudit.googleapis.com%2Factivity\"",
          "protoPayload.methodName=~\"(${join("|", [for method in local.changes : replace(method, ".", "\\.")])})$\"",
          "protoPayload.resourceName=~\"/endpoints/(${join("|", local.endpoints)})$\"",
          "protoPayload.authenticationInfo.principalEmail!=\"${var.deployer}\"",
        ])
      }
    },
  )
}

resource "google_logging_metric" "this" {
  for_each = local.log_metrics

  project     = var.project_id
  name        = "${var.prefix}/${each.key}"
  description = each.value.description
  filter      = each.value.filter

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"
  }
}

resource "google_monitoring_alert_policy" "logged" {
  for_each = local.log_metrics

  project               = var.project_id
  display_name          = "${var.prefix}: ${each.key}"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = local.channels
  user_labels           = var.labels

  conditions {
    display_name = each.value.title

    condition_threshold {
      # A filter must name the resource type too; audit entries are filed under one of their own.
      filter          = "metric.type = \"logging.googleapis.com/user/${google_logging_metric.this[each.key].name}\" AND resource.type = \"${each.value.resource}\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period   = "300s"
        per_series_aligner = "ALIGN_DELTA"
      }
    }
  }
}
