output "audit_dataset" {
  description = "Dataset of the audit log, `PROJECT.DATASET`; null: none."
  value       = one([for dataset in google_bigquery_dataset.audit : "${var.project_id}.${dataset.dataset_id}"])

  # Before the sink may write, the dataset is of no use to a reader.
  depends_on = [google_bigquery_dataset_iam_member.sink]
}

output "id" {
  description = "Resource name of the project, `projects/P`."
  value       = "projects/${var.project_id}"
}

output "name" {
  description = "Start of every name made here."
  value       = var.prefix
}

output "observability" {
  description = "Resource names of what was made, in one object."
  value = {
    alerts = merge(
      { for kind, policy in google_monitoring_alert_policy.threshold : kind => policy.name },
      { for kind, policy in google_monitoring_alert_policy.logged : kind => policy.name },
      {
        errors  = google_monitoring_alert_policy.errors.name
        silence = google_monitoring_alert_policy.silence.name
      },
    )
    budget      = one(google_billing_budget.this[*].name)
    channels    = local.channels
    log_metrics = { for kind, metric in google_logging_metric.this : kind => metric.name }
  }
}
