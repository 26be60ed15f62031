"""Model versions as they are kept: found by number or alias, shown, given aliases, changed, deleted.

A ``version`` record holds what was uploaded. A ``model`` record holds the labels that all versions share, and a
copy of what lists ask of the default version. Shown labels are those of both merged; the version's win.

Source: Vertex AI REST reference, projects.locations.models; UpdateModelRequest.model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from medport.errors import Conflict, InputError, NotFound, PreconditionFailed
from medport_local.control import deployed, ids, labels, records
from medport_local.control.database import Transaction
from medport_local.control.forms import written
from medport_local.control.forms_model import Model
from medport_local.control.records import Record

Json = dict[str, Any]
DEFAULT = "default"
OF_MODEL = frozenset(("display_name", "description", "labels"))
"""What a change of the model may be about."""
OF_VERSION = frozenset(("version_description", "labels"))
"""What a change of one version may be about."""


def version_shown(transaction: Transaction, model: str, version: str | None = None) -> Json:
    """A Model version as a GET shows it.

    Args:
        model: resource name without a version.
        version: a number or an alias; the default version if it is not given.

    Raises:
        NotFound: there is no such model, or no such version of it.
    """
    return shown(transaction, *resolved(transaction, model, version))


def resolved(transaction: Transaction, model: str, version: str | None = None) -> tuple[Record, Record]:
    """The records of a model and of one of its versions. As ``version_shown``."""
    found = records.find(transaction, model)
    if found is None or found.kind != "model":
        raise NotFound(f"there is no model {model:.200}", field="model", remedy="list the models")
    number = version or DEFAULT
    if not number.isdigit():
        row = transaction.one(
            "SELECT version FROM alias WHERE model = ? AND alias = ?", model, DEFAULT if number == "-" else number
        )
        number = "" if row is None else row["version"]
    one = records.find(transaction, f"{model}@{number}") if number else None
    if one is None:
        raise NotFound(
            f"model {model:.200} has no version {version!s:.130}", field="version", remedy="list its versions"
        )
    return found, one


def defaults_shown(transaction: Transaction, models: Sequence[Record]) -> list[Json]:
    """Models as a list shows them, in their default versions: a few queries, however many they are."""
    names = orjson.dumps([model.name for model in models]).decode()
    aliases: dict[tuple[str, str], list[str]] = {}
    for row in transaction.all(
        "SELECT model, alias, version FROM alias WHERE model IN (SELECT value FROM json_each(?)) ORDER BY alias",
        names,
    ):
        aliases.setdefault((row["model"], row["version"]), []).append(row["alias"])
    rows = transaction.all(
        "SELECT resource.* FROM json_each(?) AS wanted"
        " JOIN alias ON alias.model = wanted.value AND alias.alias = ?"
        " JOIN resource ON resource.name = alias.model || '@' || alias.version",
        names,
        DEFAULT,
    )
    versions = {row["parent"]: records.of_row(row) for row in rows}
    where = deployed.of_models(transaction, names)
    found = []
    for model in models:
        version = versions[model.name]
        key = (model.name, number_of(version))
        found.append(_shown(model, version, aliases[key], where.get(key, [])))
    return found


def shown(transaction: Transaction, model: Record, version: Record) -> Json:
    """A Model in proto3 JSON, without what has its default value."""
    number = number_of(version)
    where = deployed.of_model(transaction, model.name, number)
    return _shown(model, version, aliases_of(transaction, model.name, number), where)


def _shown(model: Record, version: Record, aliases: list[str], where: list[Json]) -> Json:
    merged = {**model.body["own"], **version.body.get("labels", {})}
    return {
        "name": model.name,
        "versionId": number_of(version),
        "versionAliases": aliases,
        "versionCreateTime": version.created,
        "versionUpdateTime": version.updated,
        **{key: value for key, value in version.body.items() if key != "labels"},
        **({"labels": merged} if merged else {}),
        # Google's client asks for these before it sends a deployment or a batch job.
        "supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES"],
        "supportedInputStorageFormats": ["jsonl"],
        "supportedOutputStorageFormats": ["jsonl"],
        **({"deployedModels": where} if where else {}),
        "createTime": model.created,
        "updateTime": model.updated,
        "etag": etag_of(model, version),
    }


def etag_of(model: Record, version: Record) -> str:
    """Another one after every change of what is shown of a version, but for where it is deployed."""
    return f"{model.etag}-{version.etag}"


def number_of(version: Record) -> str:
    """The version's number; it is the last part of its name."""
    return version.name.rpartition("@")[2]


def aliases_of(transaction: Transaction, model: str, number: str) -> list[str]:
    """In alphabetical order."""
    rows = transaction.all("SELECT alias FROM alias WHERE model = ? AND version = ? ORDER BY alias", model, number)
    return [row["alias"] for row in rows]


def give_aliases(transaction: Transaction, model: str, number: str, aliases: tuple[str, ...]) -> None:
    """Let aliases mean a version; what they meant before, they mean no more. Raises ``InputError``."""
    for alias in aliases:
        ids.check_alias(alias)
        transaction.run(
            "INSERT INTO alias VALUES (?, ?, ?)"
            " ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version",
            model,
            alias,
            number,
        )


def merge_aliases(transaction: Transaction, model: str, version: str, merged: tuple[str, ...]) -> Json:
    """Give a version aliases, and take those from it that have a ``-`` before them; gives the Model.

    What is both given and taken is left as it is.

    Raises:
        InputError: an alias has another form, or ``default`` would be nobody's.
    """
    found, one = resolved(transaction, model, version)
    given = {alias for alias in merged if not alias.startswith("-")}
    taken = {alias[1:] for alias in merged if alias.startswith("-")}
    for alias in given | taken:
        ids.check_alias(alias)
    number = number_of(one)
    if DEFAULT in taken - given and DEFAULT in aliases_of(transaction, model, number):
        raise InputError(
            "each model has one default version", field="version_aliases", remedy="give default to another version"
        )
    for alias in taken - given:
        transaction.run("DELETE FROM alias WHERE model = ? AND alias = ? AND version = ?", model, alias, number)
    give_aliases(transaction, model, number, tuple(sorted(given - taken)))
    return shown(transaction, settled(transaction, found), one)


def changed(transaction: Transaction, model: str, version: str | None, form: Model, fields: set[str]) -> Json:
    """A model or one of its versions with some fields replaced; gives the Model.

    Args:
        version: ``None`` or ``-`` for a change of the model, which all versions share.
        fields: proto names, all of ``OF_MODEL`` or all of ``OF_VERSION``.

    Raises:
        NotFound, InputError: there is none, or a value breaks a rule.
        Conflict: the caller has read an earlier state.
    """
    whole = version in (None, "-") and fields <= OF_MODEL
    # A change of the model replaces what the caller has seen, and that was one version.
    found, one = resolved(transaction, model, form.version_id or None if version in (None, "-") else version)
    if form.etag not in ("", etag_of(found, one)):
        raise Conflict(
            "the model was changed since it was read", field="etag", remedy="read it again, then change it"
        )
    values = written(form)
    if "labels" in fields:
        labels.check(form.labels or {}, field="model.labels")
        found, one = _relabelled(transaction, found, one, dict(form.labels or {}), whole=whole)
    if "display_name" in fields:
        check_display_name(form.display_name)
    if "version_description" in fields:
        one = records.update(transaction, one, _with(one.body, values, "versionDescription"))
    shared = [key for name, key in _SHARED.items() if name in fields]
    if shared:
        for each in all_of(transaction, model):
            records.update(transaction, each, _with(each.body, values, *shared))
    settled(transaction, found, touched=whole)
    return version_shown(transaction, model, number_of(one))


def settled(transaction: Transaction, model: Record, *, touched: bool = False) -> Record:
    """The model's record with a copy of what lists ask of its default version.

    Args:
        touched: something that all versions share was changed.
    """
    _, version = resolved(transaction, model.name)
    body = {**model.body, **listed(model.body["own"], version.body)}
    return model if body == model.body and not touched else records.update(transaction, model, body)


def listed(own: Json, version: Json) -> Json:
    """What lists ask of a model.

    Args:
        own: labels that all versions share.
        version: body of the default version.
    """
    source = version.get("baseModelSource", {}).get("modelGardenSource", {}).get("publicModelName", "")
    return {
        "displayName": version["displayName"],
        "labels": {**own, **version.get("labels", {})},
        "baseModelName": base_model_name(source),
    }


def base_model_name(source: str) -> str:
    """``medgemma`` of ``publishers/google/models/medgemma@medgemma-4b-it``."""
    return source.rpartition("/")[2].partition("@")[0]


def all_of(transaction: Transaction, model: str) -> list[Record]:
    """All versions, the oldest first."""
    rows = transaction.all("SELECT * FROM resource WHERE kind = 'version' AND parent = ? ORDER BY place", model)
    return [records.of_row(row) for row in rows]


def delete_version(transaction: Transaction, model: str, version: str) -> None:
    """Delete one of several versions.

    Raises:
        NotFound: there is none.
        PreconditionFailed: it is deployed, the default, or the only one.
    """
    _, one = resolved(transaction, model, version)
    number = number_of(one)
    _check_free(transaction, model, number)
    if len(all_of(transaction, model)) == 1:
        raise PreconditionFailed(
            "the only version of a model cannot be deleted", field="version", remedy="delete the model"
        )
    if DEFAULT in aliases_of(transaction, model, number):
        raise PreconditionFailed(
            "the default version cannot be deleted",
            field="version",
            remedy="give default to another version first",
        )
    transaction.run("DELETE FROM alias WHERE model = ? AND version = ?", model, number)
    records.delete(transaction, one.name)


def delete_model(transaction: Transaction, model: str) -> None:
    """Delete a model with all its versions. Raises ``NotFound``; ``PreconditionFailed`` if one is deployed."""
    resolved(transaction, model)
    _check_free(transaction, model, None)
    transaction.run("DELETE FROM alias WHERE model = ?", model)
    for each in all_of(transaction, model):
        records.delete(transaction, each.name)
    records.delete(transaction, model)


def check_display_name(name: str) -> None:
    """Raise ``InputError`` if there is none."""
    if not name.strip():
        raise InputError("'model.display_name' is required", field="model.display_name", remedy="give one")


_SHARED = {"display_name": "displayName", "description": "description"}


def _with(body: Json, values: Json, *keys: str) -> Json:
    """A body in which some keys have other values, or are gone."""
    kept = {key: value for key, value in body.items() if key not in keys}
    return kept | {key: values[key] for key in keys if key in values}


def _relabelled(
    transaction: Transaction, model: Record, version: Record, wanted: dict[str, str], *, whole: bool
) -> tuple[Record, Record]:
    """Labels such that this version shows those that are wanted.

    A change of the model leaves a version's labels where they say the same, as they are what was uploaded.
    """
    own, ones = model.body["own"], version.body.get("labels", {})
    if whole:
        ones = {key: value for key, value in ones.items() if wanted.get(key) == value}
        model = records.update(
            transaction, model, {**model.body, "own": {k: v for k, v in wanted.items() if k not in ones}}
        )
    else:
        ones = {key: value for key, value in wanted.items() if own.get(key) != value}
    version = records.update(transaction, version, _with(version.body, {"labels": ones}, "labels"))
    return model, version


def _check_free(transaction: Transaction, model: str, number: str | None) -> None:
    if deployed.of_model(transaction, model, number):
        what = model if number is None else f"{model}@{number}"
        # Not where: a caller may know of some endpoints only, and a GET shows it those.
        raise PreconditionFailed(
            f"{what} has deployed, being-deployed or being-undeployed DeployedModel(s)",
            field="name",
            remedy="undeploy them first; the model's deployedModels say where they are",
        )
