"""Whether the version that serves is the one that was approved: image, arguments, environment, labels, words.

A version's container does not change at the server, but anybody may upload another version, and labels, aliases
and descriptions can be written over. So all that deploying wrote is compared with what it would write now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medport.lock import Lock
from medport.wire.vertex import model_from_pins
from medport_deploy import names, provenance
from medport_deploy.plan.reality import Fleet
from medport_deploy.spec.reading import Spec
from medport_deploy.verify.result import Check, compared, drift, skipped

Json = dict[str, Any]
_NEW = "upload and deploy the approved one again: undeploy this, then medport deploy plan and apply"
_SETTINGS = (
    "ports", "grpcPorts", "predictRoute", "healthRoute", "invokeRoutePrefix", "sharedMemorySizeMb",
    "deploymentTimeout",
    # A probe runs a command in the container.
    "startupProbe", "healthProbe", "livenessProbe",
)  # fmt: skip
_CONTAINER = ("image", "command", "args", "env", "container")
CHECKS = ("lock", *_CONTAINER, "artifact", "explanation", "labels", "description", "good")
"""Behind ``version.``, in their order."""
_SET, _OTHER = "(set)", "(another value)"


def checks(spec: Spec, lock: Lock, name: str, fleet: Fleet, served: Mapping[str, Any] | None) -> list[Check]:
    """All checks of one version.

    Args:
        name: of the model in the specification.
        fleet: what serves.
        served: its version as Vertex's JSON; ``None`` if it is gone.
    """
    place = f"{fleet.model_id}@{fleet.version_id}"
    if served is None:
        gone = drift("version.lock", name, names.version_alias(lock.lock_id), f"{place} is gone", remedy=_NEW)
        return [gone, *(skipped(f"version.{each}", name, "the version is gone") for each in CHECKS[1:])]
    body = provenance.model_body(spec, lock, name)
    aliases = list(served.get("versionAliases", ()))
    good = names.good_alias(lock.lock_id)
    labels = {**body["labels"], names.DEPLOYMENT_LABEL: spec.name}
    there = served.get("labels", {})
    return [
        _of_lock(spec, lock, name, fleet, aliases),
        *_container(name, body["containerSpec"], served.get("containerSpec"), _pins_names(lock, name)),
        # Weights from elsewhere would be loaded in the place of the snapshot's.
        compared("version.artifact", name, "", served.get("artifactUri", ""), remedy=_NEW),
        # It has the server ask the model more than its callers do, and keep what it answers.
        compared("version.explanation", name, {}, dict(served.get("explanationSpec") or {}), remedy=_NEW),
        _labels(name, labels, there),
        compared(
            "version.description", name, body["versionDescription"], served.get("versionDescription", ""),
            remedy="somebody wrote over it: set the version's description to what is expected",
        ),
        compared(
            "version.good", name, True, good in aliases,
            remedy="it was never verified by an apply, or the alias was moved: medport deploy plan, then apply",
            shown=good,
        ),
    ]  # fmt: skip


def _of_lock(spec: Spec, lock: Lock, name: str, fleet: Fleet, aliases: list[str]) -> Check:
    alias = names.version_alias(lock.lock_id)
    if not fleet.elsewhere and fleet.model_id == spec.model_id(name) and alias in aliases:
        return compared("version.lock", name, alias, alias, shown=f"{fleet.model_id}@{fleet.version_id}")
    found = {"model": fleet.elsewhere or fleet.model_id, "version": fleet.version_id, "aliases": aliases}
    return drift("version.lock", name, {"model": spec.model_id(name), "alias": alias}, found)


def _container(name: str, wanted: Json, there: Mapping[str, Any] | None, pins: frozenset[str]) -> list[Check]:
    if there is None:
        return [skipped(f"version.{each}", name, "the server does not show the container") for each in _CONTAINER]
    env = {each["name"]: each["value"] for each in wanted["env"]}
    found_env = {each["name"]: each.get("value", "") for each in there.get("env", ())}
    settings = {key: _text(wanted.get(key)) for key in _SETTINGS if wanted.get(key)}
    found_settings = {key: _text(there.get(key)) for key in _SETTINGS if there.get(key)}
    return [
        compared("version.image", name, wanted["imageUri"], there.get("imageUri", ""), remedy=_NEW),
        compared("version.command", name, [], list(there.get("command", ())), remedy=_NEW),
        _arguments(name, wanted["args"], list(there.get("args", ()))),
        _environment(name, env, found_env, pins),
        compared("version.container", name, settings, found_settings, remedy=_NEW),
    ]


def _arguments(name: str, wanted: list[str], there: list[str]) -> Check:
    if wanted == there:
        return compared("version.args", name, True, True, shown=[_masked(each, _SET) for each in there])
    found = [_masked(each, _SET if each in wanted else _OTHER) for each in there]
    return drift("version.args", name, [_masked(each, _SET) for each in wanted], found, remedy=_NEW)


def _masked(argument: str, word: str) -> str:
    """An argument without its value, which may be a secret, but for the pin."""
    name, equals, _ = argument.partition("=")
    if name == "--revision":
        return argument
    if not argument.startswith("-"):
        return word
    return f"{name}{equals}{word}" if equals else argument


def _environment(name: str, wanted: Mapping[str, str], there: Mapping[str, str], pins: frozenset[str]) -> Check:
    wrong = sorted(key for key in {*wanted, *there} if wanted.get(key) != there.get(key))
    if not wrong:
        return compared("version.env", name, True, True, shown=sorted(there))

    def shown(values: Mapping[str, str], word: str) -> dict[str, str]:
        # A value that somebody set by hand may be a secret, and a report is passed on.
        return {key: values[key] if key in pins else word for key in wrong if key in values}

    return drift("version.env", name, shown(wanted, _SET), shown(there, _OTHER), remedy=_NEW)


def _labels(name: str, wanted: Mapping[str, str], there: Mapping[str, str]) -> Check:
    wrong = sorted(key for key, value in wanted.items() if there.get(key) != value)
    if not wrong:
        return compared("version.labels", name, True, True, shown=dict(sorted(wanted.items())))
    expected = {key: wanted[key] for key in wrong}
    found = {key: there[key] for key in wrong if key in there}
    return drift(
        "version.labels",
        name,
        expected,
        found,
        remedy="set the version's labels to what is expected; see the audit log",
    )


def _pins_names(lock: Lock, name: str) -> frozenset[str]:
    made = model_from_pins("", "", provenance.pins_of(lock, name))["containerSpec"]["env"]
    return frozenset(each["name"] for each in made)


def _text(value: Any) -> Any:
    # A 64-bit number is a text in proto3 JSON, and a number in what people write.
    return str(value) if isinstance(value, int) else value
