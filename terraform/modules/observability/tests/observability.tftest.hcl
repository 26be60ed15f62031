# What the module makes of good input.

mock_provider "google" {
  override_during = plan

  mock_resource "google_monitoring_notification_channel" {
    defaults = { id = "projects/example-project/notificationChannels/1" }
  }

  mock_resource "google_logging_project_sink" {
    defaults = { writer_identity = "serviceAccount:sink@example.iam.gserviceaccount.com" }
  }
}

variables {
  project_id          = "example-project"
  location            = "europe-west4"
  endpoints           = { medsiglip = "78", medgemma = "77" }
  notification_emails = ["oncall@example.org"]
}

run "five_alerts_on_metrics_name_metric_resource_and_endpoints" {
  command = plan

  assert {
    condition     = toset(keys(google_monitoring_alert_policy.threshold)) == toset(["latency", "replicas", "saturation"])
    error_message = "Latency, replicas and saturation must be watched."
  }

  assert {
    condition = alltrue([for policy in google_monitoring_alert_policy.threshold :
      strcontains(policy.conditions[0].condition_threshold[0].filter, "metric.type = \"aiplatform.googleapis.com/prediction/online/")
      && strcontains(policy.conditions[0].condition_threshold[0].filter, "resource.type = \"aiplatform.googleapis.com/Endpoint\"")
    && strcontains(policy.conditions[0].condition_threshold[0].filter, "one_of(\"77\", \"78\")")])
    error_message = "A filter must name metric, resource type and the endpoints, in one order."
  }

  assert {
    condition     = google_monitoring_alert_policy.silence.conditions[0].condition_absent[0].duration == "3600s"
    error_message = "An hour without a request must be noticed."
  }

  assert {
    condition     = strcontains(google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].filter, "5..") && !strcontains(google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].denominator_filter, "5..")
    error_message = "The share is of server errors among all answers."
  }
}

run "points_become_one_value_an_endpoint" {
  command = plan

  assert {
    condition = { for kind, policy in google_monitoring_alert_policy.threshold : kind => join(" ", [
      policy.conditions[0].condition_threshold[0].aggregations[0].per_series_aligner,
      policy.conditions[0].condition_threshold[0].aggregations[0].cross_series_reducer,
      policy.conditions[0].condition_threshold[0].comparison,
      policy.severity,
      ]) } == {
      latency    = "ALIGN_PERCENTILE_95 REDUCE_MAX COMPARISON_GT WARNING"
      replicas   = "ALIGN_MEAN REDUCE_SUM COMPARISON_LT CRITICAL"
      saturation = "ALIGN_MEAN REDUCE_MEAN COMPARISON_GT WARNING"
    }
    error_message = "The worst replica's latency, the sum of replicas and the mean of accelerators must be watched."
  }

  assert {
    condition = alltrue([for policy in concat(values(google_monitoring_alert_policy.threshold), [google_monitoring_alert_policy.errors]) :
      policy.conditions[0].condition_threshold[0].aggregations[0].group_by_fields == tolist(["resource.label.endpoint_id"])
    && policy.conditions[0].condition_threshold[0].aggregations[0].alignment_period == "60s" && policy.combiner == "OR"])
    error_message = "One endpoint must not hide behind another."
  }

  assert {
    condition     = google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].comparison == "COMPARISON_GT" && google_monitoring_alert_policy.errors.severity == "CRITICAL"
    error_message = "More errors than allowed is critical."
  }

  assert {
    condition = google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].aggregations == google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].denominator_aggregations && (
      google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].aggregations[0].per_series_aligner == "ALIGN_RATE" &&
    google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].aggregations[0].cross_series_reducer == "REDUCE_SUM")
    error_message = "Errors and answers must be counted alike."
  }

  assert {
    condition = google_monitoring_alert_policy.silence.combiner == "OR" && google_monitoring_alert_policy.silence.severity == "WARNING" && join(" ", [
      google_monitoring_alert_policy.silence.conditions[0].condition_absent[0].aggregations[0].alignment_period,
      google_monitoring_alert_policy.silence.conditions[0].condition_absent[0].aggregations[0].per_series_aligner,
      google_monitoring_alert_policy.silence.conditions[0].condition_absent[0].aggregations[0].cross_series_reducer,
      google_monitoring_alert_policy.silence.conditions[0].condition_absent[0].aggregations[0].group_by_fields[0],
    ]) == "60s ALIGN_RATE REDUCE_SUM resource.label.endpoint_id"
    error_message = "Silence is of an endpoint, over all its replicas."
  }
}

run "a_logged_error_is_counted_once_and_alerted_on_at_once" {
  command = plan

  assert {
    condition     = google_logging_metric.this["container-errors"].metric_descriptor[0].metric_kind == "DELTA" && google_logging_metric.this["container-errors"].metric_descriptor[0].value_type == "INT64"
    error_message = "Entries are counted."
  }

  assert {
    condition = google_monitoring_alert_policy.logged["container-errors"].conditions[0].condition_threshold[0].threshold_value == 0 && join(" ", [
      google_monitoring_alert_policy.logged["container-errors"].conditions[0].condition_threshold[0].comparison,
      google_monitoring_alert_policy.logged["container-errors"].conditions[0].condition_threshold[0].duration,
      google_monitoring_alert_policy.logged["container-errors"].conditions[0].condition_threshold[0].aggregations[0].alignment_period,
      google_monitoring_alert_policy.logged["container-errors"].conditions[0].condition_threshold[0].aggregations[0].per_series_aligner,
      google_monitoring_alert_policy.logged["container-errors"].severity,
      google_monitoring_alert_policy.logged["container-errors"].combiner,
    ]) == "COMPARISON_GT 0s 300s ALIGN_DELTA WARNING OR"
    error_message = "One entry is enough."
  }

  assert {
    condition     = strcontains(google_monitoring_alert_policy.logged["container-errors"].conditions[0].condition_threshold[0].filter, "resource.type = \"aiplatform.googleapis.com/Endpoint\"") && strcontains(google_logging_metric.this["container-errors"].filter, "(\"77\" OR \"78\")")
    error_message = "The entries must be of these endpoints."
  }
}

run "everybody_named_is_told" {
  command = plan

  variables {
    notification_channels = ["projects/example-project/notificationChannels/9"]
  }

  assert {
    condition     = google_monitoring_alert_policy.errors.notification_channels == tolist(["projects/example-project/notificationChannels/9", "projects/example-project/notificationChannels/1"])
    error_message = "Given channels and mail addresses must all be told."
  }

  assert {
    condition     = google_monitoring_notification_channel.email["oncall@example.org"].labels["email_address"] == "oncall@example.org"
    error_message = "A channel must lead to its address."
  }

  assert {
    condition     = google_monitoring_notification_channel.email["oncall@example.org"].type == "email"
    error_message = "An address is told by mail."
  }
}

run "thresholds_are_the_ones_given" {
  command = plan

  variables {
    thresholds = { p95_ms = 1500, error_ratio = 0.01, duty_cycle = 0.5, duration_s = 120, silence_s = 600 }
  }

  assert {
    condition     = google_monitoring_alert_policy.threshold["latency"].conditions[0].condition_threshold[0].threshold_value == 1500
    error_message = "The latency must be the one given."
  }

  assert {
    condition     = google_monitoring_alert_policy.threshold["saturation"].conditions[0].condition_threshold[0].threshold_value == 0.5
    error_message = "The duty cycle must be the one given."
  }

  assert {
    condition     = google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].threshold_value == 0.01 && google_monitoring_alert_policy.errors.conditions[0].condition_threshold[0].duration == "120s"
    error_message = "Error ratio and duration must be the ones given."
  }

  assert {
    condition     = google_monitoring_alert_policy.silence.conditions[0].condition_absent[0].duration == "600s"
    error_message = "The silence must be the one given."
  }
}

run "no_replica_is_below_one" {
  command = plan

  assert {
    condition     = google_monitoring_alert_policy.threshold["replicas"].conditions[0].condition_threshold[0].comparison == "COMPARISON_LT" && google_monitoring_alert_policy.threshold["replicas"].conditions[0].condition_threshold[0].threshold_value == 1
    error_message = "No replica is a value below one, not above."
  }
}

run "without_a_deployer_only_container_errors_are_counted" {
  command = plan

  assert {
    condition     = keys(google_logging_metric.this) == ["container-errors"] && keys(google_monitoring_alert_policy.logged) == ["container-errors"]
    error_message = "Nobody can be told from the deployer if it is not named."
  }
}

run "a_change_past_the_deployer_is_noticed" {
  command = plan

  variables {
    deployer = "medport-deployer@example-project.iam.gserviceaccount.com"
  }

  assert {
    condition     = strcontains(google_logging_metric.this["foreign-changes"].filter, "principalEmail!=\"medport-deployer@example-project.iam.gserviceaccount.com\"") && strcontains(google_logging_metric.this["foreign-changes"].filter, "/endpoints/(77|78)$")
    error_message = "Changes of these endpoints by others must be counted."
  }

  assert {
    condition     = strcontains(google_monitoring_alert_policy.logged["foreign-changes"].conditions[0].condition_threshold[0].filter, "user/medport/foreign-changes")
    error_message = "What is counted must be alerted on."
  }

  assert {
    condition     = strcontains(google_monitoring_alert_policy.logged["foreign-changes"].conditions[0].condition_threshold[0].filter, "resource.type = \"audited_resource\"")
    error_message = "Audit entries have a resource type of their own."
  }
}

run "no_audit_and_no_budget_by_default" {
  command = plan

  assert {
    condition     = length(google_bigquery_dataset.audit) + length(google_logging_project_sink.audit) + length(google_project_iam_audit_config.data_access) + length(google_billing_budget.this) == 0
    error_message = "What costs or reaches beyond the endpoints must be asked for."
  }

  assert {
    condition     = output.audit_dataset == null && output.observability.budget == null
    error_message = "The outputs must say that there is none."
  }
}

run "the_audit_log_is_encrypted_kept_six_years_and_writable_by_its_sink" {
  command = plan

  variables {
    audit = { kms_key_name = "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving" }
  }

  assert {
    condition     = google_bigquery_dataset.audit["medport_audit"].default_encryption_configuration[0].kms_key_name == var.audit.kms_key_name
    error_message = "The audit log must use the key."
  }

  assert {
    condition     = google_bigquery_dataset.audit["medport_audit"].default_partition_expiration_ms == 2192 * 86400000 && google_bigquery_dataset.audit["medport_audit"].deletion_policy == "PREVENT"
    error_message = "It must be kept for six years and survive a destroy."
  }

  assert {
    condition     = google_bigquery_dataset_iam_member.sink["medport_audit"].member == "serviceAccount:sink@example.iam.gserviceaccount.com"
    error_message = "The sink must be able to write."
  }

  assert {
    condition     = google_bigquery_dataset_iam_member.sink["medport_audit"].role == "roles/bigquery.dataEditor"
    error_message = "The sink must be able to add tables and rows."
  }

  assert {
    condition     = google_logging_project_sink.audit["medport_audit"].filter == "logName:\"cloudaudit.googleapis.com\" AND protoPayload.serviceName=\"aiplatform.googleapis.com\""
    error_message = "Audit entries of the serving service, and only these, must be kept."
  }

  assert {
    condition     = google_logging_project_sink.audit["medport_audit"].destination == "bigquery.googleapis.com/projects/example-project/datasets/medport_audit" && google_logging_project_sink.audit["medport_audit"].unique_writer_identity
    error_message = "The sink must write to the audit log, as nobody else."
  }

  assert {
    condition     = google_logging_project_sink.audit["medport_audit"].bigquery_options[0].use_partitioned_tables && google_bigquery_dataset.audit["medport_audit"].delete_contents_on_destroy == false
    error_message = "The log must expire by the day, and not go with a destroy."
  }

  assert {
    condition     = output.audit_dataset == "example-project.medport_audit" && length(google_project_iam_audit_config.data_access) == 0
    error_message = "Data access is logged only if asked for."
  }
}

run "data_access_logs_reads_and_writes" {
  command = plan

  variables {
    audit = {
      data_access  = true
      kms_key_name = "projects/example-project/locations/europe-west4/keyRings/medport/cryptoKeys/serving"
    }
  }

  assert {
    condition     = toset([for config in google_project_iam_audit_config.data_access[0].audit_log_config : config.log_type]) == toset(["ADMIN_READ", "DATA_READ", "DATA_WRITE"])
    error_message = "Reads and writes must be logged."
  }

  assert {
    condition     = google_project_iam_audit_config.data_access[0].service == "aiplatform.googleapis.com"
    error_message = "Only the serving service's configuration is ours to replace."
  }
}

run "a_budget_tells_early_and_on_a_forecast" {
  command = plan

  variables {
    budget = { billing_account = "0A1B2C-3D4E5F-678901", monthly_amount = 2000, project_number = "123456789012" }
  }

  assert {
    condition     = tolist(google_billing_budget.this[0].threshold_rules[*].threshold_percent) == tolist([0.5, 0.9, 1, 1]) && google_billing_budget.this[0].threshold_rules[3].spend_basis == "FORECASTED_SPEND"
    error_message = "50, 90 and 100 % spent and 100 % forecast must be told."
  }

  assert {
    condition     = google_billing_budget.this[0].budget_filter[0].projects == toset(["projects/123456789012"]) && google_billing_budget.this[0].amount[0].specified_amount[0].units == "2000"
    error_message = "The budget must be of this project, in the amount given."
  }

  assert {
    condition     = google_billing_budget.this[0].amount[0].specified_amount[0].currency_code == "EUR" && google_billing_budget.this[0].threshold_rules[0].spend_basis == "CURRENT_SPEND" && google_billing_budget.this[0].all_updates_rule[0].disable_default_iam_recipients == false
    error_message = "The billing account's own people must go on being told."
  }
}
