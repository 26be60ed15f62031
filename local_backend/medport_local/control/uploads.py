"""A Model is uploaded: a new one, or a version of one that is there.

Source: Vertex AI REST reference, models.upload, Model, ModelContainerSpec.
"""

from __future__ import annotations

import re
from typing import Any

from medport.errors import AlreadyExists, InputError, PreconditionFailed
from medport_local.control import ids, labels, records, versions
from medport_local.control.database import Transaction
from medport_local.control.forms import read, written
from medport_local.control.forms_model import ContainerSpec, Model, Probe, UploadModel
from medport_local.control.project import Project

Json = dict[str, Any]
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_KEPT = ("versionAliases", "versionId", "etag")


def upload(transaction: Transaction, project: Project, request: Json, *, require_digest: bool = False) -> Json:
    """Keep a Model version.

    Args:
        request: UploadModelRequest: ``model``, and ``modelId`` for a new model or ``parentModel`` for a version.
        require_digest: refuse an image that has a tag only.

    Returns:
        UploadModelResponse: ``model``, the name without a version, and ``modelVersionId``.

    Raises:
        InputError: a value breaks a rule.
        NotFound: there is no such parent model.
        AlreadyExists: the id is taken.
    """
    form = read(UploadModel, request)
    check(form.model, require_digest=require_digest)
    name, parent = target(project, form)
    body = _kept(form.model)
    if parent:
        found, _ = versions.resolved(transaction, name)
        found = records.update(transaction, found, found.body)
    else:
        if records.find(transaction, name) is not None:
            raise AlreadyExists(
                f"the model {name} already exists",
                field="model_id",
                remedy="choose another id, or upload a version with parentModel",
            )
        shared = {"own": {}, **versions.listed({}, body)}
        found = records.insert(transaction, name, "model", project.parent, shared)
    # It outlives the model: what a caller once knew as MODEL@1 is never another version later.
    number = str(transaction.next(f"version {name}"))
    records.insert(transaction, f"{name}@{number}", "version", name, body)
    first = () if parent else (versions.DEFAULT,)
    versions.give_aliases(transaction, name, number, (*form.model.version_aliases, *first))
    versions.settled(transaction, found)
    return {"model": name, "modelVersionId": number}


def deployable(
    transaction: Transaction, model: str, version: str | None = None, *, require_digest: bool = False
) -> Json:
    """A Model version as a GET shows it, if it may run here.

    Raises:
        NotFound: as ``versions.version_shown``.
        PreconditionFailed: its image has a tag only; it was uploaded before ``require_digest`` was wanted.
    """
    shown = versions.version_shown(transaction, model, version)
    if require_digest and not _DIGEST.fullmatch(shown.get("containerSpec", {}).get("imageUri", "")):
        raise PreconditionFailed(
            "this server takes images by digest only, and this version's has none",
            field="model",
            remedy="upload a version whose image is NAME@sha256:DIGEST",
        )
    return shown


def _kept(model: Model) -> Json:
    """A version's body. Its aliases are kept apart, as they move."""
    body = {key: value for key, value in written(model).items() if key not in _NOT_KEPT}
    if model.base_model_source and model.base_model_source.model_garden_source:
        body["modelSourceInfo"] = {"sourceType": "MODEL_GARDEN"}
    return body


def target(project: Project, form: UploadModel) -> tuple[str, bool]:
    """The name of the model that an upload is about, and whether it is there already.

    Raises:
        InputError: it names none, two, or one that cannot be.
    """
    if form.parent_model:
        name = project.canonical(form.parent_model, kind="models", field="parent_model")
        if name.count("/") != 5 or "@" in name:
            raise InputError("is not the name of a model", field="parent_model", remedy="leave the version out")
        if form.model_id and form.model_id != name.rpartition("/")[2]:
            raise InputError("is not the parent model's", field="model_id", remedy="give only one of the two")
        return name, True
    ids.check_model(form.model_id)
    return f"{project.parent}/models/{form.model_id}", False


def check(model: Model, *, require_digest: bool) -> None:
    """Raise ``InputError`` for what Vertex refuses in a Model, and for an image without a digest."""
    versions.check_display_name(model.display_name)
    labels.check(model.labels or {}, field="model.labels")
    for alias in model.version_aliases:
        ids.check_alias(alias)
    if model.container_spec is not None:
        _check_container(model.container_spec, image=model.base_model_source is None)
    image = model.container_spec.image_uri if model.container_spec else ""
    if require_digest and not _DIGEST.fullmatch(image):
        raise InputError(
            "this server takes images by digest only: a tag can be moved to other bytes",
            field="model.container_spec.image_uri",
            remedy="write NAME@sha256:DIGEST",
        )


def _check_container(spec: ContainerSpec, *, image: bool) -> None:
    at = "model.container_spec"
    if image and not spec.image_uri:
        raise InputError(f"'{at}.image_uri' is required", field=f"{at}.image_uri", remedy="give one")
    if spec.predict_route and spec.invoke_route_prefix:
        raise InputError(
            "only one of predict_route and invoke_route_prefix can be set",
            field=f"{at}.invoke_route_prefix",
            remedy="upload two versions for two ways to call",
        )
    if spec.invoke_route_prefix not in ("", "/*"):
        raise InputError("only /* is supported", field=f"{at}.invoke_route_prefix", remedy='write "/*"')
    for route in ("predict_route", "health_route"):
        path: str = getattr(spec, route)
        if path and not path.startswith("/"):
            raise InputError("is not a path", field=f"{at}.{route}", remedy="begin with /")
    seen: set[str] = set()
    for number, variable in enumerate(spec.env):
        where = f"{at}.env[{number}].name"
        if not _ENV.fullmatch(variable.name):
            raise InputError("is not the name of a variable", field=where, remedy="write a C identifier")
        if variable.name in seen:
            raise InputError(f"{variable.name:.80} is set twice", field=where, remedy="set each variable once")
        seen.add(variable.name)
    for name in ("startup_probe", "health_probe", "liveness_probe"):
        _check_probe(getattr(spec, name), f"{at}.{name}")


def _check_probe(probe: Probe | None, at: str) -> None:
    ways = ("exec", "http_get", "grpc", "tcp_socket")
    if probe is not None and sum(getattr(probe, way) is not None for way in ways) > 1:
        raise InputError("has more than one way to ask", field=at, remedy=f"give one of {', '.join(ways)}")
