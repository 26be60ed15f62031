"""Faults on purpose, for tests and rehearsals: what a real service does at its own will, and nobody can order.

Rules are kept in memory and are gone with the server. They exist only if the server was started with
``--allow-faults``, and only an operator may set them. Of the rules that fit, the oldest applies.

Source of Vertex's words: users' reports of deployments that failed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medport.errors import MedportError, NotFound, NotReady, PreconditionFailed, QuotaExceeded
from medport_local.control.asks import Ask, Json, Row
from medport_local.control.forms import Form, read
from medport_local.control.host import Intent

MAX_RULES = 100
_PATH = "/medport/v1/faults"
_STATUSES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""Which google.rpc.Code an HTTP status stands for when none is given."""

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Glob = Annotated[str, Field(max_length=200)]


class Match(Form):
    """Which calls a rule is about; what is left out fits all."""

    method: Literal["", "GET", "POST", "PATCH", "DELETE"] = ""
    path: Glob = ""
    """Of the route's template, such as ``*/endpoints/{endpoint}:predict``; ``*`` and ``?`` stand for anything."""
    verb: Glob = ""
    """Of the permission's name, such as ``aiplatform.endpoints.*``."""
    endpoint: str = ""
    """Its id."""
    deployed_model_id: str = ""


class Http(Form):
    """Another answer than the call would have got, or the same one later."""

    status: Annotated[int, Field(ge=400, le=599)] | Literal[200] | None = None
    """``None``: the call goes on after the delay."""
    message: str = "A fault that the operator asked for."
    """Of an error in Google's envelope."""
    rpc_status: str = ""
    """Of the envelope, such as ``FAILED_PRECONDITION``; by the HTTP status if it is left out."""
    text: str | None = None
    """The whole body as plain text, in place of the envelope."""
    delay_seconds: Seconds = 0.0
    retry_after_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.status is None and not self.delay_seconds:
            raise ValueError("give a status, delaySeconds or both")
        return self


class Slow(Form):
    """Operations that take longer than they need."""

    kind: Glob = "*"
    """Such as ``createEndpoint``."""
    slow_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Deploy(Form):
    """Deployments that fail after they were accepted."""

    failure: Literal["quota", "capacity", "failing_container"]
    code: Literal[8, 14] | None = None
    """google.rpc.Code of a shortage of capacity, of which both are reported; 14 if it is left out."""
    message: str = ""
    """In place of Vertex's words."""

    @model_validator(mode="after")
    def _one_code(self) -> Self:
        if self.code is not None and self.failure != "capacity":
            raise ValueError("only a capacity failure has a choice of code")
        return self

    def error(self) -> MedportError:
        """What the operation ends with."""
        kind, words = _FAILURES[self.failure]
        if self.code == 8:
            kind = QuotaExceeded
        return kind(self.message or words)


_FAILURES: Mapping[str, tuple[type[MedportError], str]] = {
    "quota": (
        QuotaExceeded,
        "The following quota metrics exceed quota limits: "
        "aiplatform.googleapis.com/custom_model_serving_nvidia_l4_gpus",
    ),
    "capacity": (
        NotReady,
        "Machine type temporarily unavailable, please deploy with a different machine type or retry.",
    ),
    "failing_container": (
        PreconditionFailed,
        "Model server exited unexpectedly. Model server logs can be found in the log of this server.",
    ),
}


class RuleForm(Form):
    """One rule as it is posted: whom it meets, how often, and one effect."""

    match: Match = Match()
    times: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """``None``: until the rule is deleted."""
    http: Http | None = None
    operation: Slow | None = None
    deploy: Deploy | None = None

    @model_validator(mode="after")
    def _one_effect(self) -> Self:
        if sum(effect is not None for effect in (self.http, self.operation, self.deploy)) != 1:
            raise ValueError("give exactly one of http, operation, deploy")
        # What would never be looked at is refused, or the rule would meet more than its author thinks.
        said = self.match.model_fields_set
        if self.operation is not None and said:
            raise ValueError("operations are matched by operation.kind alone")
        if self.deploy is not None and not said <= {"endpoint", "deployed_model_id"}:
            raise ValueError("deployments are matched by endpoint and deployedModelId alone")
        return self


@dataclass(frozen=True, slots=True)
class DoorFault:
    """What a call meets in place of its answer, or before it."""

    status: int | None
    """HTTP status; ``None``: the call goes on after the delay."""
    body: Json | str
    """A string is the whole body, as plain text."""
    delay_s: float
    retry_after_s: int | None


class _Rule:
    """A rule that is in force, and how often it applied."""

    def __init__(self, id_: str, form: RuleForm) -> None:
        self.id = id_
        self.form = form
        self.hits = 0

    @property
    def spent(self) -> bool:
        return self.form.times is not None and self.hits >= self.form.times

    def shown(self) -> Json:
        said: Json = self.form.model_dump(mode="json", by_alias=True, exclude_unset=True)
        left = {} if self.form.times is None else {"left": self.form.times - self.hits}
        return {"id": self.id, **said, "hits": self.hits, **left}


class Faults:
    """The rules of one server, for any thread."""

    def __init__(self) -> None:
        self._changed = threading.Lock()
        self._rules: list[_Rule] = []
        self._made = 0

    def slow(self, kind: str) -> float:
        """Seconds by which an operation of a kind is held up; counts as a hit."""
        form = self._hit(lambda form: form.operation is not None and fnmatchcase(kind, form.operation.kind))
        return form.operation.slow_seconds if form is not None and form.operation is not None else 0.0

    def check_deploy(self, intent: Intent) -> None:
        """Raise what a deployment is to fail with: ``QuotaExceeded``, ``NotReady`` or ``PreconditionFailed``."""
        endpoint = intent.endpoint.rpartition("/")[2]
        form = self._hit(
            lambda form: form.deploy is not None and _named(form.match, endpoint, intent.deployed_model_id)
        )
        if form is not None and form.deploy is not None:
            raise form.deploy.error()

    def at_door(self, method: str, template: str, verb: str, path: Mapping[str, str]) -> DoorFault | None:
        """What a call meets before its handler.

        Args:
            template: the route's path with its parameters' names.
            path: the parameters.
        """
        return self._door(method, template, verb, lambda match: _told(match, path) and _named(match, *_ids(path)))

    def at_answer(
        self,
        method: str,
        template: str,
        verb: str,
        path: Mapping[str, str],
        endpoint: str | None,
        deployed_model: str | None,
    ) -> DoorFault | None:
        """What a call meets after its handler, by rules that name what its path does not tell.

        Which model of a split answers, and which endpoint an OpenAI client's ``model`` means, is known only then.
        """
        return self._door(
            method,
            template,
            verb,
            lambda match: not _told(match, path) and _named(match, endpoint, deployed_model),
        )

    def rows(self) -> tuple[Row, ...]:
        """The operator's calls."""
        return (
            Row(
                method="POST",
                path=_PATH,
                handler=self._create,
                verb="medport.faults.create",
                operation="createFault",
            ),
            Row(method="GET", path=_PATH, handler=self._list, verb="medport.faults.list", operation="listFaults"),
            Row(
                method="DELETE",
                path=_PATH,
                handler=self._clear,
                verb="medport.faults.delete",
                operation="deleteFaults",
            ),
            Row(
                method="DELETE",
                path=f"{_PATH}/{{fault}}",
                handler=self._delete,
                verb="medport.faults.delete",
                operation="deleteFault",
            ),
        )

    async def _create(self, ask: Ask) -> Json:
        form = read(RuleForm, ask.body, at="fault")
        with self._changed:
            if len(self._rules) >= MAX_RULES:
                self._rules = [rule for rule in self._rules if not rule.spent]
            if len(self._rules) >= MAX_RULES:
                raise QuotaExceeded(
                    f"there are {MAX_RULES} faults already", field="fault", remedy="delete some of them"
                )
            self._made += 1
            rule = _Rule(str(self._made), form)
            self._rules.append(rule)
            return rule.shown()

    async def _list(self, ask: Ask) -> Json:
        with self._changed:
            return {"faults": [rule.shown() for rule in self._rules]}

    async def _clear(self, ask: Ask) -> Json:
        with self._changed:
            self._rules.clear()
        return {}

    async def _delete(self, ask: Ask) -> Json:
        with self._changed:
            left = [rule for rule in self._rules if rule.id != ask.path["fault"]]
            if len(left) == len(self._rules):
                raise NotFound("there is no such fault", field="fault", remedy=f"see GET {_PATH}")
            self._rules = left
        return {}

    def _door(self, method: str, template: str, verb: str, named: Callable[[Match], bool]) -> DoorFault | None:
        # Whoever sets a fault that meets everything must be able to take it back.
        if template.startswith(_PATH):
            return None

        def fits(form: RuleForm) -> bool:
            match = form.match
            return (
                form.http is not None
                and match.method in ("", method)
                and fnmatchcase(template, match.path or "*")
                and fnmatchcase(verb, match.verb or "*")
                and named(match)
            )

        form = self._hit(fits)
        return None if form is None or form.http is None else _fault(form.http)

    def _hit(self, fits: Callable[[RuleForm], bool]) -> RuleForm | None:
        with self._changed:
            for rule in self._rules:
                if not rule.spent and fits(rule.form):
                    rule.hits += 1
                    return rule.form
        return None


def _fault(http: Http) -> DoorFault:
    # Some servers answer 200 and an error in the body; the body does not say 200 then.
    code = http.status if http.status not in (None, 200) else 500
    rpc = http.rpc_status or _STATUSES.get(code, "UNKNOWN")
    envelope = {"error": {"code": code, "message": http.message, "status": rpc}}
    body = envelope if http.text is None else http.text
    return DoorFault(http.status, body, http.delay_seconds, http.retry_after_seconds)


def _ids(path: Mapping[str, str]) -> tuple[str | None, str | None]:
    return path.get("endpoint"), path.get("deployed_model")


def _told(match: Match, path: Mapping[str, str]) -> bool:
    """Whether a path tells all that a rule names."""
    endpoint, deployed_model = _ids(path)
    return not (match.endpoint and endpoint is None) and not (match.deployed_model_id and deployed_model is None)


def _named(match: Match, endpoint: str | None, deployed_model: str | None) -> bool:
    return match.endpoint in ("", endpoint) and match.deployed_model_id in ("", deployed_model)
