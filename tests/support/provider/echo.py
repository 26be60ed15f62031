"""Every type without a service here: it is what the plan says, with ids as Google forms them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from .api import Api
from .resources import Refused, filled, known
from .schema import Type
from .values import UNKNOWN

Json = dict[str, Any]

# In the order in which they are filled: a later one may use an earlier one. {hash} is a number that depends on
# what the configuration says.
_MADE: dict[str, dict[str, str]] = {
    "google_artifact_registry_repository": {
        "id": "projects/{project}/locations/{location}/repositories/{repository_id}",
        "name": "{repository_id}",
        "registry_uri": "{location}-docker.pkg.dev/{project}/{repository_id}",
    },
    "google_bigquery_dataset": {"id": "projects/{project}/datasets/{dataset_id}"},
    "google_billing_budget": {"id": "billingAccounts/{billing_account}/budgets/{hash}", "name": "{id}"},
    "google_compute_address": {
        "id": "projects/{project}/regions/{region}/addresses/{name}",
        "address": "10.10.0.5",
    },
    "google_compute_forwarding_rule": {
        "id": "projects/{project}/regions/{region}/forwardingRules/{name}",
        "psc_connection_status": "ACCEPTED",
        "psc_connection_id": "{hash}",
    },
    "google_compute_network": {"id": "projects/{project}/global/networks/{name}"},
    "google_compute_subnetwork": {"id": "projects/{project}/regions/{region}/subnetworks/{name}"},
    "google_dns_managed_zone": {"id": "projects/{project}/managedZones/{name}"},
    "google_dns_record_set": {"id": "projects/{project}/managedZones/{managed_zone}/rrsets/{name}/{type}"},
    "google_kms_crypto_key": {"id": "{key_ring}/cryptoKeys/{name}"},
    "google_kms_key_ring": {"id": "projects/{project}/locations/{location}/keyRings/{name}"},
    "google_logging_metric": {"id": "{name}"},
    "google_logging_project_sink": {
        "id": "projects/{project}/sinks/{name}",
        "writer_identity": "serviceAccount:service-{hash}@gcp-sa-logging.iam.gserviceaccount.com",
    },
    "google_monitoring_alert_policy": {"id": "projects/{project}/alertPolicies/{hash}", "name": "{id}"},
    "google_monitoring_notification_channel": {
        "id": "projects/{project}/notificationChannels/{hash}",
        "name": "{id}",
    },
    "google_project_iam_custom_role": {"id": "projects/{project}/roles/{role_id}", "name": "{id}"},
    "google_project_iam_member": {"id": "{project}/{role}/{member}"},
    "google_project_service": {"id": "{project}/{service}"},
    "google_secret_manager_secret": {"id": "projects/{project}/secrets/{secret_id}", "name": "{id}"},
    "google_secret_manager_secret_version": {"id": "{secret}/versions/1", "name": "{id}", "version": "1"},
    "google_service_account": {
        "email": "{account_id}@{project}.iam.gserviceaccount.com",
        "id": "projects/{project}/serviceAccounts/{email}",
        "member": "serviceAccount:{email}",
        "name": "{id}",
        "unique_id": "{hash}",
    },
    "google_storage_bucket": {"id": "{name}", "url": "gs://{name}"},
    "google_storage_bucket_iam_member": {"id": "b/{bucket}/{role}/{member}"},
}
_AGENT = "service-{hash}@gs-project-accounts.iam.gserviceaccount.com"
_DATA: dict[str, dict[str, str]] = {
    "google_bigquery_default_service_account": {
        "email": "bq-{hash}@bigquery-encryption.iam.gserviceaccount.com",
        "id": "projects/{project}",
        "member": "serviceAccount:{email}",
    },
    "google_client_config": {"id": "projects/{project}"},
    "google_project": {"id": "projects/{project_id}", "name": "{project_id}", "number": "{hash}"},
    "google_storage_project_service_account": {
        "id": "{project}",
        "email_address": _AGENT,
        "member": "serviceAccount:{email_address}",
    },
}


@dataclass(frozen=True, slots=True)
class Echo:
    of: Type

    def create(self, api: Api, planned: Json) -> Json:
        return known(self.of.block, _named(planned, _MADE.get(self.of.name, {"id": self.of.name + "/{hash}"})))

    def read(self, api: Api, state: Json) -> Json | None:
        return state

    def update(self, api: Api, prior: Json, planned: Json) -> Json:
        return self.create(api, planned)

    def delete(self, api: Api, state: Json) -> None:
        """Nothing has it."""

    def imported(self, of: Type, id_: str, provider: Json) -> Json:
        raise Refused(f"the stand-in has no service from which {of.name} could be imported")


def data_source(name: str, config: Json, provider: Json) -> Json:
    """What a data source answers. The project is the provider's if the configuration names none."""
    project = config.get("project_id") or config.get("project") or provider.get("project") or ""
    field = "project_id" if name == "google_project" else "project"
    known_now = {each: value for each, value in config.items() if value is not None} | {field: project}
    blank = dict.fromkeys(_DATA[name], UNKNOWN)
    answer = _named({**config, **known_now, **blank}, _DATA[name], seed={"project": project})
    return {**answer, "region": provider.get("region")} if "region" in config else answer


def _named(value: Json, templates: dict[str, str], seed: Json | None = None) -> Json:
    """The value with what is unknown of it filled from templates."""
    found = {**value, "hash": _number(seed or value)}
    for name, template in templates.items():
        if found.get(name) is UNKNOWN or found.get(name) is None:
            found[name] = filled(template, found)
    found.pop("hash")
    return found


def _number(value: Json) -> str:
    text = json.dumps(
        {key: each for key, each in value.items() if each is not UNKNOWN}, sort_keys=True, default=repr
    )
    return str(int(hashlib.sha256(text.encode()).hexdigest()[:10], 16))
