# One open model, endpoint and deployment in a single resource: the quick start. README.md names what it does not do;
# for anything that serves patients use modules/endpoint and deploy behind it.
resource "google_vertex_ai_endpoint_with_model_garden_deployment" "this" {
  project              = var.project_id
  location             = var.location
  publisher_model_name = var.publisher_model_name

  # No hugging_face_access_token here: it would be in the state in clear.
  model_config {
    accept_eula        = var.accept_eula
    model_display_name = var.display_name

    container_spec {
      image_uri             = var.image_uri
      args                  = var.args
      predict_route         = var.routes.predict
      health_route          = var.routes.health
      shared_memory_size_mb = tostring(var.shared_memory_mb)

      ports {
        container_port = 8080
      }
    }
  }

  endpoint_config {
    endpoint_display_name      = var.display_name
    dedicated_endpoint_enabled = true
  }

  deploy_config {
    dedicated_resources {
      min_replica_count = var.replicas.min
      max_replica_count = var.replicas.max

      machine_spec {
        machine_type      = var.machine.type
        accelerator_type  = var.machine.accelerator
        accelerator_count = var.machine.count
      }

      autoscaling_metric_specs {
        metric_name = "aiplatform.googleapis.com/prediction/online/accelerator/duty_cycle"
        target      = 60
      }
    }
  }

  # The default of 180 minutes keeps a machine that does not come up in the bill for three hours.
  timeouts {
    create = "60m"
  }

  lifecycle {
    precondition {
      condition     = var.accept_eula
      error_message = "The model's terms must be read and accepted by a person: set accept_eula = true yourself."
    }
  }
}
