"""What the package does not say of a schema, by hand, for the attributes that our configurations use.

Source: the google provider's documentation and source, 7.45, and its upgrade guide for 8.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """Of one attribute or block."""

    force_new: bool = False
    """A change replaces the resource."""
    computed: bool = False
    """Of a block: what the service says stands if the configuration says nothing."""
    sensitive: bool = False
    write_only: bool = False
    """Reaches the provider and is never stored."""
    default: Any = None
    allowed: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    """Top-level names that may not be set beside it."""
    one_of: tuple[str, ...] = ()
    """Top-level names of which exactly one must be set; itself among them."""


_NEW = Rule(force_new=True)
_COMPUTED = Rule(computed=True)
_KEPT = Rule()
_SOURCES = ("publisher_model_name", "hugging_face_model_id")
_ONE_SOURCE = replace(_NEW, one_of=_SOURCES)
_RESOURCES = "deploy_config.dedicated_resources."


def _new(*names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, _NEW)


_GRANT = _new("role", "member")

OVERLAY: Mapping[str, Mapping[str, Rule]] = {
    "google_vertex_ai_endpoint": {
        **_new("name", "location", "region", "project", "encryption_spec", "encryption_spec.kms_key_name"),
        **_new("private_service_connect_config.enable_private_service_connect"),
        "network": replace(_NEW, conflicts=("private_service_connect_config",)),
        "dedicated_endpoint_enabled": Rule(conflicts=("private_service_connect_config",)),
        "private_service_connect_config": Rule(conflicts=("dedicated_endpoint_enabled", "network")),
    },
    "google_vertex_ai_endpoint_with_model_garden_deployment": {
        "*": _NEW,
        "publisher_model_name": _ONE_SOURCE,
        "hugging_face_model_id": _ONE_SOURCE,
        # Those that change in place, since 7.42.
        **dict.fromkeys(
            (
                "deletion_policy",
                _RESOURCES + "min_replica_count",
                _RESOURCES + "max_replica_count",
                _RESOURCES + "required_replica_count",
                _RESOURCES + "autoscaling_metric_specs",
                _RESOURCES + "autoscaling_metric_specs.metric_name",
                _RESOURCES + "autoscaling_metric_specs.target",
            ),
            _KEPT,
        ),
    },
    "google_artifact_registry_repository": {
        **_new("repository_id", "location", "format", "kms_key_name", "project"),
        "mode": replace(_NEW, default="STANDARD_REPOSITORY"),
        "vulnerability_scanning_config": _COMPUTED,
    },
    "google_artifact_registry_repository_iam_member": {**_GRANT, **_new("repository", "location")},
    "google_bigquery_dataset": {**_new("dataset_id", "location", "project"), "access": _COMPUTED},
    "google_bigquery_dataset_iam_member": {**_GRANT, **_new("dataset_id")},
    "google_billing_budget": {**_new("billing_account"), "budget_filter": _COMPUTED},
    "google_compute_address": {
        **_new("name", "subnetwork", "region", "address"),
        "address_type": replace(_NEW, default="EXTERNAL", allowed=("INTERNAL", "EXTERNAL")),
    },
    "google_compute_firewall": {
        **_new("name", "network"),
        "direction": replace(_NEW, allowed=("INGRESS", "EGRESS")),
    },
    "google_compute_forwarding_rule": {
        **_new("name", "network", "subnetwork", "ip_address", "region"),
        "service_directory_registrations": _COMPUTED,
    },
    "google_compute_network": _new("name", "auto_create_subnetworks", "project"),
    "google_compute_subnetwork": {**_new("name", "network", "region"), "secondary_ip_range": _COMPUTED},
    "google_dns_managed_zone": {
        **_new("name", "dns_name", "visibility"),
    },
    "google_dns_record_set": _new("name", "managed_zone"),
    "google_kms_crypto_key": {**_new("name", "key_ring", "purpose"), "version_template": _COMPUTED},
    "google_kms_crypto_key_iam_member": {**_GRANT, **_new("crypto_key_id")},
    "google_kms_key_ring": _new("name", "location", "project"),
    "google_logging_metric": {**_new("name", "project"), "metric_descriptor": _COMPUTED},
    "google_logging_project_sink": _new("name", "project", "unique_writer_identity"),
    "google_monitoring_alert_policy": {
        "combiner": Rule(allowed=("AND", "OR", "AND_WITH_MATCHING_RESOURCE")),
        "severity": Rule(allowed=("CRITICAL", "ERROR", "WARNING")),
    },
    "google_project_iam_audit_config": _new("project", "service"),
    "google_project_iam_custom_role": _new("role_id", "project"),
    "google_project_iam_member": {**_GRANT, **_new("project")},
    "google_project_service": {**_new("service", "project"), "disable_on_destroy": Rule(default=False)},
    "google_secret_manager_secret": {**_new("secret_id", "project", "replication")},
    "google_secret_manager_secret_iam_member": {**_GRANT, **_new("secret_id")},
    "google_secret_manager_secret_version": {
        "secret": _NEW,
        "secret_data": Rule(force_new=True, sensitive=True, conflicts=("secret_data_wo",)),
        "secret_data_wo": Rule(write_only=True, sensitive=True, conflicts=("secret_data",)),
        "secret_data_wo_version": _NEW,
        "enabled": Rule(default=True),
    },
    "google_service_account": _new("account_id", "project"),
    "google_service_account_iam_member": {**_GRANT, **_new("service_account_id")},
    "google_storage_bucket": {
        **_new("name", "location", "project"),
        "force_destroy": Rule(default=False),
        "storage_class": Rule(default="STANDARD"),
        "versioning": _COMPUTED,
        "website": _COMPUTED,
        "soft_delete_policy": _COMPUTED,
    },
    "google_storage_bucket_iam_member": {**_GRANT, **_new("bucket")},
}
