# What must be noticed of endpoints, and by whom: five alerts on metrics, two on logs.
#
# A filter on a metric that no endpoint has written yet can be refused for minutes after the first deployment: apply
# again then.
locals {
  endpoints = sort(values(var.endpoints))

  of_endpoints = join(" AND ", [
    "resource.type = \"aiplatform.googleapis.com/Endpoint\"",
    "resource.labels.endpoint_id = one_of(${join(", ", [for id in local.endpoints : format("%q", id)])})",
  ])

  channels = concat(sort(var.notification_channels), [for channel in google_monitoring_notification_channel.email : channel.id])

  # kind => the metric, how its points become one value an endpoint, and which value is too much or too little
  alerts = {
    latency = {
      title      = "95th percentile of latency above ${var.thresholds.p95_ms} ms"
      severity   = "WARNING"
      metric     = "prediction_latencies"
      aligner    = "ALIGN_PERCENTILE_95"
      reducer    = "REDUCE_MAX"
      comparison = "COMPARISON_GT"
      threshold  = var.thresholds.p95_ms
    }
    replicas = {
      title      = "No replica serves"
      severity   = "CRITICAL"
      metric     = "replicas"
      aligner    = "ALIGN_MEAN"
      reducer    = "REDUCE_SUM"
      comparison = "COMPARISON_LT"
      threshold  = 1
    }
    saturation = {
      title      = "Accelerators busy above ${var.thresholds.duty_cycle * 100} %"
      severity   = "WARNING"
      metric     = "accelerator/duty_cycle"
      aligner    = "ALIGN_MEAN"
      reducer    = "REDUCE_MEAN"
      comparison = "COMPARISON_GT"
      threshold  = var.thresholds.duty_cycle
    }
  }
}

resource "google_monitoring_notification_channel" "email" {
  for_each = var.notification_emails

  project      = var.project_id
  display_name = "${var.prefix}: ${each.key}"
  type         = "email"
  labels       = { email_address = each.key }
  user_labels  = var.labels
}

resource "google_monitoring_alert_policy" "threshold" {
  for_each = local.alerts

  project               = var.project_id
  display_name          = "${var.prefix}: ${each.key}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = local.channels
  user_labels           = var.labels

  conditions {
    display_name = each.value.title

    condition_threshold {
      filter          = "metric.type = \"aiplatform.googleapis.com/prediction/online/${each.value.metric}\" AND ${local.of_endpoints}"
      comparison      = each.value.comparison
      threshold_value = each.value.threshold
      duration        = "${var.thresholds.duration_s}s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = each.value.aligner
        cross_series_reducer = each.value.reducer
        group_by_fields      = ["resource.label.endpoint_id"]
      }
    }
  }
}

resource "google_monitoring_alert_policy" "errors" {
  project               = var.project_id
  display_name          = "${var.prefix}: errors"
  combiner              = "OR"
  severity              = "CRITICAL"
  notification_channels = local.channels
  user_labels           = var.labels

  conditions {
    display_name = "More than ${var.thresholds.error_ratio * 100} % of answers are server errors"

    condition_threshold {
      filter             = "metric.type = \"aiplatform.googleapis.com/prediction/online/response_count\" AND metric.labels.response_code = monitoring.regex.full_match(\"5..\") AND ${local.of_endpoints}"
      denominator_filter = "metric.type = \"aiplatform.googleapis.com/prediction/online/response_count\" AND ${local.of_endpoints}"
      comparison         = "COMPARISON_GT"
      threshold_value    = var.thresholds.error_ratio
      duration           = "${var.thresholds.duration_s}s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
        group_by_fields      = ["resource.label.endpoint_id"]
      }

      denominator_aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
        group_by_fields      = ["resource.label.endpoint_id"]
      }
    }
  }
}

# The dead man's switch: an endpoint that nobody can reach writes no errors.
resource "google_monitoring_alert_policy" "silence" {
  project               = var.project_id
  display_name          = "${var.prefix}: silence"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = local.channels
  user_labels           = var.labels

  conditions {
    display_name = "No request for ${var.thresholds.silence_s} s"

    condition_absent {
      filter   = "metric.type = \"aiplatform.googleapis.com/prediction/online/prediction_count\" AND ${local.of_endpoints}"
      duration = "${var.thresholds.silence_s}s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
        group_by_fields      = ["resource.label.endpoint_id"]
      }
    }
  }
}
