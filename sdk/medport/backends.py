"""A profile as three values: base URL, credential, limits. Nothing above this module asks which kind it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from medport import _extras
from medport._call import Call, Deadline, Family, Reply, Request, Verb
from medport._http import Channel
from medport.auth import ApiKey, Credential, GoogleCredential, NoCredential
from medport.config import Policy, Profile, Resolved, check_location, location_of
from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    InputError,
    MedportError,
    NotFound,
    PolicyError,
    ProtocolError,
    RequestTooLarge,
)
from medport.results import Provenance
from medport.wire import checked
from medport.wire.vertex import (
    ADAPTER_HEADER,
    DEPLOYED_MODEL_HEADER,
    MODEL_HEADER,
    MODEL_VERSION_HEADER,
    PIN_HEADERS,
    REQUEST_ID_HEADER,
    EndpointList,
    EndpointResource,
    ModelResource,
    Pins,
    Resource,
    pins_from_headers,
    pins_from_model,
)

_T = TypeVar("_T")
_Resource = TypeVar("_Resource", bound=Resource)

DEDICATED_LIMIT_BYTES = 10_000_000
SHARED_LIMIT_BYTES = 1_500_000
"""Vertex documents "10 MB" and "1.5 MB"; the smaller reading of MB is taken (docs: choose an endpoint type)."""
TARGET_TTL_S = 600.0
# Only the envelope's own key looks so: inside a JSON string, quotes are escaped.
_DEPLOYED = re.compile(rb'"deployedModelId"\s*:\s*"(\w{1,64})"')
_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Backend:
    """Where one profile's requests go and how they are made."""

    name: str
    kind: str
    profile: Profile = field(repr=False)
    policy: Policy
    base_url: str
    """Of the control plane: where endpoints and models are looked up."""
    channel: Channel
    credential: Credential = field(repr=False)
    stop: Callable[[], None] | None = field(default=None, repr=False)
    """Ends what ``start`` began, for the in-process backend."""
    server_name: str | None = None
    """The name in the control plane's certificate, where its address is another."""

    def get(self, path: str) -> Request:
        """A look-up on the control plane."""
        return Request(
            "GET", f"{self.base_url}/v1/{path}", self.credential.headers(), server_name=self.server_name
        )

    def request(self, call: Call[Any], target: Target) -> Request:
        """The request of ``call``.

        Raises:
            RequestTooLarge: the body is over the endpoint's limit. Nothing was sent.
        """
        if len(call.body) > target.limit_bytes:
            raise RequestTooLarge(
                f"the request is {len(call.body) / 1e6:.1f} MB, over the {target.limit_bytes / 1e6:g} MB limit",
                field="images",
                remedy="send fewer or smaller images",
                backend=self.name,
            )
        headers = {**self.credential.headers(), "content-type": "application/json"}
        return Request("POST", target.url(call.verb), headers, call.body, target.server_name)


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint, looked up: where it answers, what it takes, what it serves."""

    endpoint: str
    base_url: str
    limit_bytes: int
    server_name: str | None = None
    pins: Mapping[str, Pins] = field(default_factory=dict)
    """By deployed model id."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By deployed model id, the model version that it was when it was looked up, as ``…/models/ID@VERSION``."""
    expires_at: float = 0.0

    def url(self, verb: Verb) -> str:
        # chat/completions is documented under v1beta1 alone; predict under v1 (wire facts, section 1.1).
        if verb == "predict":
            return f"{self.base_url}/v1/{self.endpoint}:predict"
        return f"{self.openai_url}/chat/completions"

    @property
    def openai_url(self) -> str:
        """What OpenAI's clients are given as ``base_url``."""
        return f"{self.base_url}/v1beta1/{self.endpoint}"


def start(name: str, resolved: Resolved, profile: Profile) -> Backend:
    """Make the backend of a profile. The in-process one loads its models here, so this may take seconds.

    Raises:
        ConfigError: a setting or a package is missing.
        VerificationError: the in-process snapshot is not what its manifest says.
    """
    return _STARTS[profile.backend](name, resolved, profile)


def _start_in_process(name: str, resolved: Resolved, profile: Profile) -> Backend:
    server = _extras.load("medport_local.inprocess", extra="local").start(
        dict(profile.snapshot) or None,
        store=profile.store,
        lock=profile.lock,
        device=profile.device,
        dtype=profile.dtype,
        reuse_bytes=profile.reuse_bytes,
    )
    credential = ApiKey(server.api_key) if server.api_key else NoCredential()
    channel = Channel(socket_path=str(server.socket_path) if server.socket_path else None)
    return Backend(
        name, profile.backend, profile, resolved.policy, server.base_url, channel, credential, server.close
    )


def _start_local(name: str, resolved: Resolved, profile: Profile) -> Backend:
    assert profile.url is not None  # config checks it
    key = resolved.secret(profile)
    url = profile.url.rstrip("/")
    if key and urlsplit(url).scheme == "http" and urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(
            "an API key is not sent over plain http", field=f"profiles.{name}.url", remedy="use https"
        )
    credential = ApiKey(key) if key else NoCredential()
    return Backend(
        name,
        profile.backend,
        profile,
        resolved.policy,
        url,
        Channel(ca_file=profile.ca_file),
        credential,
        server_name=profile.server_name,
    )


def _start_vertex(name: str, resolved: Resolved, profile: Profile) -> Backend:
    channel = Channel(ca_file=profile.ca_file, use_environment=True)
    credential = GoogleCredential(file=profile.auth.credentials_file, ca_file=profile.ca_file)
    return Backend(name, profile.backend, profile, resolved.policy, api_base(profile), channel, credential)


_STARTS = {"in-process": _start_in_process, "local": _start_local, "vertex": _start_vertex}


def api_base(profile: Profile) -> str:
    """The control plane's base URL: regional, multi-regional (``us``, ``eu``), global, or as configured."""
    if profile.api_endpoint:
        return profile.api_endpoint.rstrip("/")
    endpoint = profile.medgemma or profile.medsiglip
    location = profile.location or (location_of(endpoint.endpoint) if endpoint else None)
    if location in ("us", "eu"):
        return f"https://aiplatform.{location}.rep.{profile.api_domain}"
    if location == "global":
        return f"https://aiplatform.{profile.api_domain}"
    return f"https://{location}-aiplatform.{profile.api_domain}"


def expected_url(profile: Profile, family: Family) -> str:
    """The OpenAI base URL of an endpoint as far as the profile tells, before anything is looked up."""
    wanted = profile.endpoint(family)
    name = _resource_name(wanted.endpoint, profile) if wanted else f"projects/-/locations/-/endpoints/{family}"
    if wanted and wanted.dns:
        return f"https://{wanted.dns}/v1beta1/{name}"
    base_url = {"in-process": "http://localhost", "local": (profile.url or "").rstrip("/")}.get(profile.backend)
    return f"{base_url or api_base(profile)}/v1beta1/{name}"


def locate(backend: Backend, family: Family) -> Generator[Request, Reply, Target]:
    """Look an endpoint up: its host, its limits, and the pins of each model deployed to it.

    Yields requests and is sent their replies, or thrown their errors.

    Raises:
        NotFound: the server has no endpoint for ``family``.
        PolicyError: the endpoint answers from another location than it is named for, or its host is none that
            may be sent the credential.
    """
    wanted = backend.profile.endpoint(family)
    if wanted is None:
        endpoint = yield from _find(backend, family)
    else:
        name = _resource_name(wanted.endpoint, backend.profile)
        try:
            reply = yield backend.get(name)
            endpoint = _resource(EndpointResource, reply)
        except (AuthError, NotFound, ConnectionFailed):
            if wanted.dns is None:
                raise
            endpoint = EndpointResource(name=name)  # may predict, may not read: the host is in the profile
        _check_location(name, endpoint.name)
    base_url, limit = _reach(backend, endpoint, wanted.dns if wanted else None)
    pins, versions = {}, {}
    for deployed in endpoint.deployed_models:
        pins[deployed.id] = yield from _pins(backend, deployed.model, deployed.model_version_id)
        versions[deployed.id] = f"{deployed.model.partition('@')[0]}@{deployed.model_version_id}"
    return Target(
        endpoint.name,
        base_url,
        limit,
        backend.profile.server_name,
        pins,
        versions,
        time.monotonic() + TARGET_TTL_S,
    )


def look_up(backend: Backend, family: Family, send: Callable[[Request], Reply]) -> Target:
    """Run ``locate``: each request it yields goes to ``send``, each reply or error is handed back."""
    flow = locate(backend, family)
    try:
        request = next(flow)
        while True:
            try:
                reply = send(request)
            except MedportError as error:
                request = flow.throw(error)
            else:
                request = flow.send(reply)
    except StopIteration as end:
        target: Target = end.value
        return target


def _find(backend: Backend, family: Family) -> Generator[Request, Reply, EndpointResource]:
    """A server of one's own need not be told its endpoints' names: they carry a label."""
    reply = yield backend.get("projects/-/locations/-/endpoints")
    for endpoint in _resource(EndpointList, reply).endpoints:
        if endpoint.labels.get("medport-family") == family:
            return endpoint
    raise NotFound(f"the server serves no {family}", field=family, remedy=f"start it with --snapshot {family}=DIR")


def _resource_name(endpoint: str, profile: Profile) -> str:
    if location_of(endpoint):
        return endpoint
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", endpoint):
        raise ConfigError("this is neither an endpoint id nor a resource name", field="endpoint")
    return f"projects/{profile.project or '-'}/locations/{profile.location or '-'}/endpoints/{endpoint}"


def _resource(model: type[_Resource], reply: Reply) -> _Resource:
    try:
        return checked(model, reply.json())
    except InputError as fault:
        raise ProtocolError(
            "the answer to a look-up cannot be read", field=fault.field, remedy="check the control plane's URL"
        ) from None


def _check_location(asked: str, answered: str) -> None:
    wanted, found = location_of(asked), location_of(answered)
    if found is None:
        raise ProtocolError("the endpoint's name is no resource name", field="name", remedy="check the URL")
    if wanted not in ("-", found):
        raise PolicyError(
            f"the endpoint was asked for in {wanted} and says that it is in {found}",
            field="endpoint",
            remedy="check the endpoint's location",
        )


def _reach(backend: Backend, endpoint: EndpointResource, dns: str | None) -> tuple[str, int]:
    """The data plane's base URL and the size limit of a request."""
    if backend.kind != "vertex":
        return backend.base_url, DEDICATED_LIMIT_BYTES
    if dns is None and not endpoint.dedicated_endpoint_enabled:
        return backend.base_url, SHARED_LIMIT_BYTES
    host = dns or endpoint.dedicated_endpoint_dns.removeprefix("https://").rstrip("/")
    if not host:
        raise NotFound("the endpoint has no DNS name yet", field="endpoint", remedy="wait a minute and try again")
    if not _HOST.fullmatch(host):
        raise PolicyError("the endpoint's DNS name is not a host name", field="dedicatedEndpointDns")
    if dns is None:  # a host from the profile was chosen by the caller; one from an answer must be Google's
        _check_host(backend, host, location_of(endpoint.name))
    return f"https://{host}", DEDICATED_LIMIT_BYTES


def _check_host(backend: Backend, host: str, location: str | None) -> None:
    bare = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if not any(bare == s or bare.endswith("." + s) for s in backend.profile.dns_suffixes):
        raise PolicyError(
            "the endpoint names a host that may not be sent the credential",
            field="dedicatedEndpointDns",
            remedy="check the endpoint; dns_suffixes lists the hosts that may",
        )
    region = re.match(r"[^.]+\.([a-z]+-[a-z]+\d+)-[^.]+\.", bare)
    if region and location and region.group(1) != location:
        raise PolicyError(
            f"the endpoint is named for {location} and answers from {region.group(1)}", field="endpoint"
        )
    if region:
        check_location(backend.name, region.group(1), backend.policy)


def _pins(backend: Backend, model: str, version_id: str) -> Generator[Request, Reply, Pins]:
    if not model:
        return Pins()
    try:
        # Without the version the *default* one would answer, which need not be the one deployed.
        reply = yield backend.get(f"{model.partition('@')[0]}@{version_id}" if version_id else model)
        return pins_from_model(_resource(ModelResource, reply))
    except (AuthError, NotFound):
        return Pins()  # the role to read models is not needed to predict; the result then says "unknown"


def provenance(
    backend: Backend,
    target: Target,
    reply: Reply,
    *,
    began_at: float,
    attempts: int,
    sampling: Mapping[str, Any],
) -> Provenance:
    """Which bytes answered. The one place where a result's provenance is made."""
    deployed = reply.headers.get(DEPLOYED_MODEL_HEADER.lower())
    if deployed is None and (named := _DEPLOYED.search(reply.body)):
        deployed = named[1].decode()
    elif deployed is None and len(target.pins) == 1:
        deployed = next(iter(target.pins))
    looked_up = target.pins.get(deployed or "", Pins())
    if _version_in(reply) not in (None, target.versions.get(deployed or "")):
        looked_up = Pins()  # the id was given to another version since
    pins = pins_from_headers(reply.headers, looked_up)
    return Provenance(
        backend=backend.name,
        kind=backend.kind,
        endpoint=target.endpoint,
        deployed_model_id=deployed,
        model_id=pins.model_id,
        revision=pins.revision,
        image_digest=pins.image_digest,
        snapshot_sha256=pins.snapshot_sha256,
        lock_id=pins.lock_id,
        request_id=reply.headers.get(REQUEST_ID_HEADER.lower()),
        sdk_version=_sdk_version(),
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        latency_ms=(time.monotonic() - began_at) * 1e3,
        attempts=attempts,
        sampling=sampling,
        prompt_version=None,
        model_notice=pins.notice,
        language=backend.profile.language,
        parent=pins.parent,
        adapters=_adapters(reply.headers.get(ADAPTER_HEADER.lower(), "")),
    )


def _version_in(reply: Reply) -> str | None:
    """The version that answered, as ``…/models/ID@VERSION``, if a server of ours says which bytes it is."""
    names = (MODEL_HEADER, MODEL_VERSION_HEADER, PIN_HEADERS["snapshot_sha256"])
    model, version, snapshot = (reply.headers.get(name.lower()) for name in names)
    return f"{model}@{version}" if model and version and snapshot else None


def _adapters(header: str) -> dict[str, str]:
    named = (each.strip().rpartition("@") for each in header.split(","))
    return {name: sha256 for name, _, sha256 in named if name}


def reader(call: Call[_T]) -> Callable[[Backend, Target, Reply, int, Deadline], _T]:
    """What reads the reply to ``call``, begun now, with its provenance."""
    began = time.monotonic()

    def read(backend: Backend, target: Target, reply: Reply, attempts: int, _: Deadline) -> _T:
        source = provenance(backend, target, reply, began_at=began, attempts=attempts, sampling=call.sampling)
        return call.read(reply, source)

    return read


@cache
def _sdk_version() -> str:
    from importlib.metadata import version

    return version("medport")


def named(error: MedportError, name: str, attempts: int) -> MedportError:
    """The same error, which now says who was asked and how often."""
    error.backend = error.backend or name
    error.attempts = attempts
    return error
