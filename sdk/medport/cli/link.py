"""The steps from a profile to its models, each as a check."""

from __future__ import annotations

import time
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeVar

from medport import _extras, backends, config
from medport._call import Call, Deadline, Family, Request
from medport._http import Channel, Http
from medport.backends import Backend, Target
from medport.cli import packages, reach
from medport.cli.checks import Check, Skipped
from medport.config import Profile, Resolved
from medport.errors import ConfigError, MedportError, NotFound, NotReady, ServerError
from medport.tasks import chat as chat_task
from medport.tasks import embed as embed_task

T = TypeVar("T")
FAMILIES: tuple[Family, ...] = ("medgemma", "medsiglip")
LOOK_UP_TIMEOUT_S = 30.0
ROUND_TRIP_TIMEOUT_S = 120.0
MAX_SKEW_S = 120.0
"""Google refuses signed requests for a token when the clock is some minutes off."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is to check about a kind of backend."""

    extra: str | None
    network: bool
    cloud: bool
    """It may go through a proxy, and the policy's locations hold for it."""


_KINDS = {
    "in-process": Kind("local", network=False, cloud=False),
    "local": Kind(None, network=True, cloud=False),
    "vertex": Kind("vertex", network=True, cloud=True),
}


class Link:
    """One profile of the chain, and what the checks have found out about it for those that follow."""

    def __init__(self, name: str, profile: Profile, resolved: Resolved) -> None:
        self._name, self._profile, self._resolved = name, profile, resolved
        self._kind = _KINDS[profile.backend]
        self._backend: Backend | None = None
        self._http: Http | None = None
        self._targets: dict[Family, Target] = {}

    def checks(self) -> list[Check]:
        """All checks that this kind of backend has, in the order in which a request meets them."""
        extra = self._kind.extra
        start = Check("credential", self._credential, "check auth of the profile", ("packages",))
        way = [
            Check("dns", self._dns, "check the host in url and the resolver of this machine"),
            Check("tcp", self._tcp, "check that the server runs, and the firewall between", ("dns",)),
            Check("tls", self._tls, "set ca_file to the CA that signed the certificate", ("tcp",)),
            Check("clock", self._clock, "set the clock of this machine, best by NTP", ("tls",)),
        ]
        if not self._kind.network:
            way = [Check("snapshots", self._snapshots, "fetch the snapshot again", ("packages",))]
            start = Check("models", self._models, "see the error", ("snapshots",))
        last = "tls" if self._kind.network else "snapshots"  # a wrong clock alone keeps nothing from working
        after = [
            Check("endpoint", self._endpoint, "check project, location and endpoint", (start.name, last)),
            Check("location", self._location, "choose a profile in an allowed location", ("endpoint",)),
            Check("data plane", self._data_plane, "check DNS and firewall for this host", ("endpoint",)),
            Check("deployed model", self._deployed, "deploy a model to the endpoint", ("endpoint",)),
            Check(
                "pins", self._pins, "deploy with a lock, or serve a snapshot with a manifest", ("deployed model",)
            ),
            Check("chat", self._chat, "see the log of the server", ("endpoint", "deployed model")),
            Check("embedding", self._embedding, "see the log of the server", ("endpoint", "deployed model")),
        ]
        return [
            Check("configuration", self._configuration, "mend medport.toml"),
            Check("packages", self._packages, f'pip install "medport[{extra}]"'),
            *([start, *way] if self._kind.network else [*way, start]),
            *after,
        ]

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
        if self._backend is not None and self._backend.stop is not None:
            self._backend.stop()

    def _configuration(self) -> str:
        given = sum(key.startswith(f"profiles.{self._name}.") for key in self._resolved.origins)
        return f"valid; {given} settings given, the others by default"

    def _packages(self) -> str:
        extra = self._kind.extra
        names = packages.requirements(extra) if extra else []
        missing = [name for name in names if packages.version(name) is None]
        if missing:
            raise ConfigError(f"not installed: {', '.join(missing)}", remedy=f'pip install "medport[{extra}]"')
        dicom = packages.version("pydicom")
        read = f"pydicom {dicom}" if dicom else "without pydicom: DICOM files cannot be read"
        return ", ".join([*(f"{name} {packages.version(name)}" for name in names), read])

    def _snapshots(self) -> str:
        selection = _extras.load("medport_local.selection", extra="local")
        phantom = _extras.load("medport_local.phantom", extra="local")
        lock, given = self._profile.lock, dict(self._profile.snapshot)
        if not given and lock is None:
            given = {family: phantom.weights_dir(family) for family in FAMILIES}
        places = {family: str(place) for family, place in given.items()}
        opened = selection.verified(selection.Wanted(snapshots=places, store=self._profile.store, lock=lock))
        return ", ".join(f"{each.model_id} sha256 {each.snapshot_sha256[:12]}…" for each in opened.values())

    def _credential(self) -> str:
        self._backend = backends.start(self._name, self._resolved, self._profile)
        headers = self._backend.credential.headers()
        self._http = Http(self._backend.channel)
        return f"there is one: {', '.join(sorted(headers))} header" if headers else "none is needed or given"

    def _models(self) -> str:
        began = time.monotonic()
        self._credential()
        return f"loaded in {time.monotonic() - began:.1f} s"

    def _base_url(self) -> str:
        return (self._profile.url or backends.api_base(self._profile)).rstrip("/")

    def _dns(self) -> str:
        host, port, _ = reach.origin(self._base_url())
        self._refuse_proxied(host)
        return f"{host}: {', '.join(reach.addresses(host, port))}"

    def _tcp(self) -> str:
        host, port, _ = reach.origin(self._base_url())
        self._refuse_proxied(host)
        began = time.monotonic()
        reach.connect(host, port).close()
        return f"port {port} answers in {(time.monotonic() - began) * 1e3:.0f} ms"

    def _tls(self) -> str:
        host, port, secure = reach.origin(self._base_url())
        self._refuse_proxied(host)
        return reach.handshake(host, port, host, self._profile.ca_file) if secure else "plain http, not encrypted"

    def _refuse_proxied(self, host: str) -> None:
        proxies = urllib.request.getproxies()
        proxied = "https" in proxies or "all" in proxies
        if self._kind.cloud and proxied and not urllib.request.proxy_bypass(host):
            raise Skipped("requests go through the proxy of the environment")

    def _clock(self) -> str:
        http = Http(Channel(ca_file=self._profile.ca_file, use_environment=self._kind.cloud))
        try:  # without the credential, and whatever the status: every answer has the time in its head
            question = Request("GET", self._base_url() + "/")
            with http.stream(question, Deadline.after(LOOK_UP_TIMEOUT_S)) as (head, _):
                date = head.headers.get("date")
        finally:
            http.close()
        if date is None:
            return "the server does not tell its time"
        skew_s = time.time() - parsedate_to_datetime(date).timestamp()
        if abs(skew_s) > MAX_SKEW_S:
            raise ServerError(f"this clock is {skew_s:+.0f} s off that of the server")
        return f"within {max(1.0, abs(skew_s)):.0f} s of the server's"

    def _endpoint(self) -> str:
        backend, http = self._open()
        absent: list[MedportError] = []
        for family in FAMILIES:
            try:
                self._targets[family] = backends.look_up(
                    backend, family, partial(http.send, deadline=Deadline.after(LOOK_UP_TIMEOUT_S))
                )
            except NotFound as error:
                if self._profile.endpoint(family) is not None:
                    raise
                absent.append(error)
        if not self._targets:
            raise absent[0]
        return ", ".join(f"{family} {target.endpoint}" for family, target in self._targets.items())

    def _location(self) -> str:
        allowed = self._resolved.policy.allowed_locations
        if not self._kind.cloud:
            return "on this site; the policy speaks of the cloud"
        places = {config.location_of(target.endpoint) for target in self._targets.values()}
        for place in places:
            config.check_location(self._name, place, self._resolved.policy)
        return f"{', '.join(map(str, places))}; allowed: {', '.join(allowed) if allowed else 'all'}"

    def _data_plane(self) -> str:
        said = []
        for url, server_name in {(t.base_url, t.server_name) for t in self._targets.values()}:
            if not self._kind.network or url == self._base_url():
                continue
            host, port, _ = reach.origin(url)
            self._refuse_proxied(host)
            said.append(f"{host}: {reach.handshake(host, port, server_name or host, self._profile.ca_file)}")
        return "; ".join(said) or "the same host"

    def _deployed(self) -> str:
        said = []
        for family, target in self._targets.items():
            if not target.pins and (wanted := self._profile.endpoint(family)) is not None and wanted.dns:
                raise Skipped("the endpoint may not be read with this credential")
            if not target.pins:
                raise NotReady("no model is deployed", field=family)
            said += [f"{family} {identity}" for identity in target.pins]
        return ", ".join(said)

    def _pins(self) -> str:
        said, known = [], False
        for target in self._targets.values():
            for pins in target.pins.values():
                known = known or bool(pins.revision or pins.snapshot_sha256)
                parts = {
                    "revision": pins.revision, "snapshot sha256": pins.snapshot_sha256,
                    "image": pins.image_digest, "lock": pins.lock_id,
                }  # fmt: skip
                shown = [f"{key} {value[:12]}…" for key, value in parts.items() if value]
                said.append(" ".join([pins.model_id or "unknown model", *shown, *filter(None, [pins.notice])]))
        if not known:
            raise Skipped("the model says neither its revision nor the hash of its weights")
        return "; ".join(said)

    def _chat(self) -> str:
        call = chat_task.call("Hello", (), {"max_tokens": 1}, stream=False)
        return f"one token in {self._ask(call).provenance.latency_ms:.0f} ms"

    def _embedding(self) -> str:
        flow = embed_task.embed(embed_task.text_instances(["lungs"]), "texts")
        batch = self._ask(next(flow))
        return f"{batch.vectors.shape[1]} numbers in {batch.provenance.latency_ms:.0f} ms"

    def _ask(self, call: Call[T]) -> T:
        """One request, once: a doctor shows the fault that a retry would hide."""
        backend, http = self._open()
        target = self._targets.get(call.model)
        if target is None:
            raise Skipped(f"no endpoint for {call.model}")
        began = time.monotonic()
        deadline = Deadline.after(min(self._profile.timeout_s, ROUND_TRIP_TIMEOUT_S))
        reply = http.send(backend.request(call, target), deadline)
        source = backends.provenance(backend, target, reply, began_at=began, attempts=1, sampling=call.sampling)
        return call.read(reply, source)

    def _open(self) -> tuple[Backend, Http]:
        assert self._backend is not None  # what calls this needs the check that started it
        assert self._http is not None
        return self._backend, self._http
