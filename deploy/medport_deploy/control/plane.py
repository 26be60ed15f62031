"""The control plane's calls about models and endpoints: Vertex AI's, or a local server's at another address.

Resources go in and come out as proto3 JSON, as Vertex's REST reference writes them; ``medport.wire.vertex`` reads
them. Names are given by their last part. Each call has a timeout. Calls that only read are tried again; those that
change something are not, as the answer to one that worked may have been lost: ``steps`` looks first.

Source: Vertex AI REST reference, projects.locations.models and .endpoints; google.cloud.aiplatform_v1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import tenacity

from medport.errors import Conflict, MedportError, NotFound, ProtocolError
from medport_deploy.control import messages
from medport_deploy.control.clients import Clients
from medport_deploy.control.errors import translated
from medport_deploy.control.polling import Polling

T = TypeVar("T")
Json = dict[str, Any]
DEPLOY_S = 7200.0
"""The longest that Vertex takes over a deployment."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 20.0
_MOST_OPERATIONS = 1000


class Where(Protocol):
    """Which control plane, and what in it; a spec's ``target`` is one."""

    @property
    def project(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def url(self) -> str | None:
        """Base address; ``None``: Google's host of the location."""
        ...

    @property
    def ca_file(self) -> Any:
        """PEM file of the authority that signed the server's certificate; ``None``: the public ones."""
        ...


class ControlPlane:
    """The calls. A context manager; not for several threads.

    All raise errors of ours: ``NotFound``, ``AlreadyExists``, ``PreconditionFailed``, ``Conflict``,
    ``InputError``, ``QuotaExceeded``, ``AuthError``, ``Forbidden``, ``Timeout``, ``ConnectionFailed``,
    ``ServerError``. What gives an operation gives it at once; ``wait`` waits for it.

    Args:
        credentials: of google-auth; see ``control.credentials``.
        timeout_s: for one call.
        attempts: how often a call that only reads is sent.
        renew: how the credential is renewed, for errors; see ``control.credentials.renewal``.
        direct: go through no proxy, whatever the environment says: for a server of the site's own.
    """

    def __init__(
        self,
        target: Where,
        credentials: Any,
        *,
        timeout_s: float = 60.0,
        attempts: int = 5,
        polling: Polling | None = None,
        renew: str = "renew the credential",
        direct: bool = False,
    ) -> None:
        # It reports each call on stdout, names included.
        logging.getLogger("google.cloud.aiplatform").setLevel(logging.ERROR)
        self.parent = f"projects/{target.project}/locations/{target.location}"
        self.polling = polling or Polling()
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._renew = renew
        self._clients = Clients(target.location, target.url, target.ca_file, credentials, direct=direct)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._clients.close()

    def model_name(self, model: str) -> str:
        """Resource name of a model; ``model`` may have a version, as ``id@2``."""
        return f"{self.parent}/models/{model}"

    def endpoint_name(self, endpoint: str) -> str:
        """Resource name of an endpoint."""
        return f"{self.parent}/endpoints/{endpoint}"

    # Models

    def upload_model(self, model: Json, *, model_id: str, new: bool) -> Json:
        """The operation that uploads a version.

        Args:
            model: with ``versionAliases`` by which it is found again.
            new: the first version makes the model; any other belongs to one that is there.
        """
        body = messages.model(model)
        which = {"model_id": model_id} if new else {"parent_model": self.model_name(model_id)}
        return self._begin("models", "upload_model", parent=self.parent, model=body, **which)

    def get_model(self, model: str, version: str = "") -> Json:
        """A version of a model.

        Args:
            version: number or alias; the default version if it is empty.
        """
        name = self.model_name(f"{model}@{version}" if version else model)
        return self._read("models", "get_model", messages.plain, name=name)

    def list_models(self, labels: Mapping[str, str]) -> list[Json]:
        """The default versions of all models that have these labels."""
        return self._list("models", "list_models", parent=self.parent, filter=_filter(labels))

    def list_versions(self, model: str) -> list[Json]:
        """All versions of a model."""
        return self._list("models", "list_model_versions", name=self.model_name(model))

    def merge_aliases(self, model: str, version: str, aliases: Sequence[str]) -> Json:
        """Give a version aliases, or take those away that have a ``-`` before them; gives the version."""
        name = self.model_name(f"{model}@{version}")
        found = self._call("models", "merge_version_aliases", name=name, version_aliases=list(aliases))
        return messages.plain(found)

    def delete_version(self, model: str, version: str) -> Json:
        """The operation that deletes a version; not the only or the default one."""
        return self._begin("models", "delete_model_version", name=self.model_name(f"{model}@{version}"))

    def delete_model(self, model: str) -> Json:
        """The operation that deletes a model with all its versions."""
        return self._begin("models", "delete_model", name=self.model_name(model))

    # Endpoints

    def create_endpoint(self, endpoint: Json, *, endpoint_id: str) -> Json:
        """The operation that creates an endpoint."""
        body = messages.endpoint(endpoint)
        return self._begin(
            "endpoints", "create_endpoint", parent=self.parent, endpoint=body, endpoint_id=endpoint_id
        )

    def get_endpoint(self, endpoint: str) -> Json:
        """An endpoint with its deployed models and its split."""
        return self._read("endpoints", "get_endpoint", messages.plain, name=self.endpoint_name(endpoint))

    def list_endpoints(self, labels: Mapping[str, str]) -> list[Json]:
        """All endpoints that have these labels."""
        return self._list("endpoints", "list_endpoints", parent=self.parent, filter=_filter(labels))

    def set_traffic(
        self, endpoint: str, split: Mapping[str, int], *, unless_not: Sequence[Mapping[str, int]] | None = None
    ) -> Json:
        """Share out an endpoint's traffic; gives the endpoint.

        Args:
            split: deployed model id → percent; they add up to 100.
            unless_not: what the split may be now. Anything else was somebody else's doing.

        Raises:
            Conflict: the split is another, or was changed at the same time.
        """
        now = self.get_endpoint(endpoint)
        present = split_of(now)
        if unless_not is not None and present not in [*map(dict, unless_not), dict(split)]:
            raise Conflict(
                f"the traffic of {endpoint} is {shares(present)}, which this run has not set",
                field="trafficSplit",
                remedy="see who changed it (medport deploy status), then plan again",
            )
        # The etag that was just read makes the server refuse a change that crosses another.
        body = messages.endpoint({**now, "trafficSplit": {id_: part for id_, part in split.items() if part}})
        mask = messages.mask("traffic_split")
        return messages.plain(self._call("endpoints", "update_endpoint", endpoint=body, update_mask=mask))

    def update_endpoint(self, endpoint: str, body: Json, fields: Sequence[str]) -> Json:
        """Change fields of an endpoint; gives the endpoint.

        Args:
            body: the new values. Labels that it does not name stay as they are; one that is ``None`` goes.
            fields: which, in proto's spelling, such as ``display_name``; not ``traffic_split``.

        Raises:
            Conflict: the endpoint was changed at the same time.
        """
        now = self.get_endpoint(endpoint)
        changed = {**now, **body}
        if "labels" in body:
            labels = {**now.get("labels", {}), **body["labels"]}
            changed["labels"] = {key: value for key, value in labels.items() if value is not None}
        # The etag that was just read makes the server refuse a change that crosses another.
        asked = messages.endpoint(changed)
        mask = messages.mask(*fields)
        return messages.plain(self._call("endpoints", "update_endpoint", endpoint=asked, update_mask=mask))

    def set_inference_timeout(self, endpoint: str, seconds: int) -> Json:
        """The operation that sets how long a request may take; Terraform's provider cannot."""
        body = messages.endpoint(
            {
                "name": self.endpoint_name(endpoint),
                "clientConnectionConfig": {"inferenceTimeout": f"{seconds}s"},
            }
        )
        return self._begin("endpoints", "update_endpoint_long_running", endpoint=body)

    def delete_endpoint(self, endpoint: str) -> Json:
        """The operation that deletes an endpoint without deployed models."""
        return self._begin("endpoints", "delete_endpoint", name=self.endpoint_name(endpoint))

    def deploy_model(self, endpoint: str, deployed_model: Json, split: Mapping[str, int] | None = None) -> Json:
        """The operation that deploys a version.

        Args:
            deployed_model: with its ``id``, and ``model`` as a resource name with the version. With
                ``rolloutOptions`` or ``scaleToZeroSpec`` the call goes to v1beta1, which alone has them.
            split: the new model's share is that of ``"0"``. ``None``: an endpoint's first model gets all traffic,
                any other none.
        """
        api = "v1beta1" if messages.needs_beta(deployed_model) else "v1"
        return self._begin(
            "endpoints",
            "deploy_model",
            api=api,
            endpoint=self.endpoint_name(endpoint),
            deployed_model=messages.deployed_model(deployed_model, api),
            traffic_split=dict(split or {}),
        )

    def mutate_deployed_model(self, endpoint: str, deployed_model: Json, fields: Sequence[str]) -> Json:
        """The operation that changes the replicas of a deployed model.

        Args:
            fields: such as ``dedicated_resources.min_replica_count``.
        """
        return self._begin(
            "endpoints",
            "mutate_deployed_model",
            endpoint=self.endpoint_name(endpoint),
            deployed_model=messages.deployed_model(deployed_model, "v1"),
            update_mask=messages.mask(*fields),
        )

    def undeploy_model(self, endpoint: str, id_: str, split: Mapping[str, int] | None = None) -> Json:
        """The operation that takes a deployed model away.

        Args:
            split: of the others, if this one has traffic and is not the last.
        """
        return self._begin(
            "endpoints",
            "undeploy_model",
            endpoint=self.endpoint_name(endpoint),
            deployed_model_id=id_,
            traffic_split=dict(split or {}),
        )

    # Operations

    def wait(
        self,
        operation: Mapping[str, Any],
        *,
        doing: str = "the operation",
        deadline_s: float = DEPLOY_S,
        on_stage: Callable[[str], None] = lambda stage: None,
        leave: Callable[[], bool] = lambda: False,
    ) -> Json:
        """An operation once it is done. As ``Polling.wait``."""
        return self.polling.wait(
            self.get_operation, operation, doing=doing, deadline_s=deadline_s, on_stage=on_stage, leave=leave
        )

    def get_operation(self, name: str) -> Json:
        """An operation as it is now; sent once."""
        found = self._of_any_version(lambda: self._call(_service(name), "get_operation", {"name": name}))
        return messages.operation(found)

    def pending(self, resource: str) -> list[Json]:
        """The operations of a resource that are not done; none if there is no such resource.

        Args:
            resource: its name.
        """
        found: list[Json] = []
        token, seen = "", 0
        while seen < _MOST_OPERATIONS:
            asked = {"name": resource, "page_size": 100, "page_token": token}
            call = partial(self._call, _service(resource), "list_operations", asked)
            try:
                page = self._again(partial(self._of_any_version, call))
            except NotFound:
                return []
            seen += max(1, len(page.operations))
            # A filter by state is not documented for every service, and a wrong one would hide what runs.
            found += [messages.operation(each) for each in page.operations if not each.done]
            token = page.next_page_token
            if not token:
                break
        return found

    def cancel(self, name: str) -> None:
        """Ask for an operation to end; it may not."""
        self._call(_service(name), "cancel_operation", {"name": name})

    # How they are sent

    def _begin(self, service: str, method: str, *, api: str = "v1", **request: Any) -> Json:
        return messages.operation(self._call(service, method, request, api=api).operation)

    def _read(self, service: str, method: str, reading: Callable[[Any], T], **request: Any) -> T:
        return self._again(lambda: reading(self._call(service, method, request)))

    def _list(self, service: str, method: str, **request: Any) -> list[Json]:
        # All pages or none: an attempt that fails on a later page begins anew.
        return self._again(lambda: [messages.plain(each) for each in self._pages(service, method, request)])

    def _pages(self, service: str, method: str, request: Json) -> Iterator[Any]:
        with translated(_words(method), renew=self._renew):
            yield from self._clients.call(service, method, request, timeout_s=self._timeout_s)

    def _call(
        self, service: str, method: str, request: Json | None = None, *, api: str = "v1", **fields: Any
    ) -> Any:
        with translated(_words(method), renew=self._renew):
            return self._clients.call(service, method, request or fields, timeout_s=self._timeout_s, api=api)

    def _of_any_version(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except ProtocolError:
            # What an operation of v1beta1 holds can be read once its messages are known, which takes a second.
            messages.know_beta()
            return call()

    def _again(self, call: Callable[[], T]) -> T:
        sleep = self.polling.clock.sleep
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda fault: isinstance(fault, MedportError) and fault.retryable),
            wait=_wait_s,
            stop=tenacity.stop_after_attempt(self._attempts),
            sleep=sleep,
            reraise=True,
        )(call)


def split_of(endpoint: Mapping[str, Any]) -> dict[str, int]:
    """The traffic split of an endpoint as it was read, without shares of zero."""
    return {id_: int(share) for id_, share in endpoint.get("trafficSplit", {}).items() if int(share)}


def shares(split: Mapping[str, int]) -> str:
    """A split in a line."""
    return ", ".join(f"{id_}: {share} %" for id_, share in sorted(split.items())) or "nobody's"


def last(name: str) -> str:
    """The last part of a resource name, such as its id."""
    return name.rpartition("/")[2]


def _wait_s(state: tenacity.RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome is not None else None
    asked = fault.retry_after_s if isinstance(fault, MedportError) else None
    if asked is not None:
        return min(asked, _LONGEST_WAIT_S)
    backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
    return float(backoff(state))


def _filter(labels: Mapping[str, str]) -> str:
    return " AND ".join(f'labels.{key}="{value}"' for key, value in labels.items())


def _service(name: str) -> str:
    return "models" if "/models/" in name else "endpoints"


def _words(method: str) -> str:
    return method.replace("_", " ")
