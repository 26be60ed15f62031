# Off by default: it needs rights on the billing account, and with a person's credentials the provider's
# `user_project_override` and `billing_project`.
resource "google_billing_budget" "this" {
  count = var.budget == null ? 0 : 1

  billing_account = var.budget.billing_account
  display_name    = "${var.prefix}: models"

  budget_filter {
    projects = ["projects/${var.budget.project_number}"]
  }

  amount {
    specified_amount {
      currency_code = var.budget.currency
      units         = tostring(var.budget.monthly_amount)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1]

    content {
      threshold_percent = threshold_rules.value
      spend_basis       = "CURRENT_SPEND"
    }
  }

  threshold_rules {
    threshold_percent = 1
    spend_basis       = "FORECASTED_SPEND"
  }

  all_updates_rule {
    monitoring_notification_channels = slice(local.channels, 0, min(5, length(local.channels)))
    disable_default_iam_recipients   = false
  }
}

check "somebody_is_told" {
  assert {
    condition     = length(var.notification_emails) + length(var.notification_channels) > 0
    error_message = "No notification_emails and no notification_channels: alerts are raised and nobody is told."
  }
}
