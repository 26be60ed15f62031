"""The calls about models and their versions.

Source: Vertex AI REST reference, projects.locations.models.
"""

from __future__ import annotations

import asyncio
from typing import Any

from medport.errors import InputError
from medport_local.control import filters, ids, masks, paging, records, versions
from medport_local.control.asks import Ask, Row
from medport_local.control.database import Database, Transaction
from medport_local.control.forms import read, written
from medport_local.control.forms_model import MergeVersionAliases, Model, UploadModel
from medport_local.control.listings import TIME_ORDERS, TIMES, listing
from medport_local.control.operations import Kind, Operations
from medport_local.control.project import Project
from medport_local.control.uploads import target, upload
from medport_local.control.versions import version_shown

__all__ = ["Models", "upload", "version_shown"]

Json = dict[str, Any]

UPLOAD = Kind("uploadModel", "UploadModelOperationMetadata", "UploadModelResponse")
DELETE = Kind("deleteModel", "DeleteOperationMetadata", None)
DELETE_VERSION = Kind("deleteModelVersion", "DeleteOperationMetadata", None)

_HERE = "/{api}/projects/{project}/locations/{location}/models"
_VERSIONS = paging.Listing(
    condition="kind = 'version' AND parent = ?",
    filters={
        # Labels of the model and of the version, merged as they are shown.
        "labels": filters.Labels(
            sql="(SELECT json_patch(json_extract(m.body, '$.own'),"
            " coalesce(json_extract(resource.body, '$.labels'), '{}'))"
            " FROM resource AS m WHERE m.name = resource.parent)",
            at="$",
        ),
        **TIMES,
    },
    orders=TIME_ORDERS,
)
_ELSEWHERE = {
    "version_aliases": "call :mergeVersionAliases",
    "container_spec": "a version does not change; upload a new one",
    "artifact_uri": "a version does not change; upload a new one",
}


class Models:
    """The models of one server."""

    def __init__(
        self, project: Project, database: Database, operations: Operations, *, require_digest: bool = False
    ) -> None:
        self._project = project
        self._database = database
        self._operations = operations
        operations.register(
            UPLOAD,
            lambda transaction, request: upload(transaction, project, request, require_digest=require_digest),
        )
        operations.register(DELETE, _delete)
        operations.register(DELETE_VERSION, _delete_version)
        base_model_name = filters.Text(
            sql="json_extract(body, '$.baseModelName')",
            operators=frozenset("="),
            normal=versions.base_model_name,
        )
        self._listing = listing(project, "model", base_model_name=base_model_name)

    def rows(self) -> tuple[Row, ...]:
        """What there is to call."""
        one, verb = _HERE + "/{model}", "aiplatform.models."
        return (
            Row(method="POST", path=f"{_HERE}:upload", handler=self._upload, verb=f"{verb}upload",
                operation="uploadModel"),
            Row(method="GET", path=_HERE, handler=self._list, verb=f"{verb}list", operation="listModels"),
            Row(method="GET", path=one, handler=self._get, verb=f"{verb}get", operation="getModel"),
            Row(method="PATCH", path=one, handler=self._update, verb=f"{verb}update", operation="updateModel"),
            Row(method="DELETE", path=one, handler=self._delete, verb=f"{verb}delete", operation="deleteModel"),
            Row(method="GET", path=f"{one}:listVersions", handler=self._list_versions, verb=f"{verb}list",
                operation="listModelVersions"),
            Row(method="DELETE", path=f"{one}:deleteVersion", handler=self._delete_version, verb=f"{verb}delete",
                operation="deleteModelVersion"),
            Row(method="POST", path=f"{one}:mergeVersionAliases", handler=self._merge_aliases,
                verb=f"{verb}update", operation="mergeVersionAliases"),
        )  # fmt: skip

    async def _upload(self, ask: Ask) -> Json:
        form = read(UploadModel, ask.body)
        request = written(form)
        if form.parent_model:
            request["parentModel"], _ = target(self._project, form)
        elif form.model_id:
            ids.check_model(form.model_id)
        else:
            request["modelId"] = ids.made()
        resource = request.get("parentModel") or f"{self._project.parent}/models/{request['modelId']}"
        return await self._operations.perform(ask, UPLOAD, resource=resource, request=request)

    async def _get(self, ask: Ask) -> Json:
        name, version = self._named(ask)
        with self._database.reading() as transaction:
            return _visible(version_shown(transaction, name, version), ask)

    async def _list(self, ask: Ask) -> Json:
        return await asyncio.to_thread(self._page, ask)

    def _page(self, ask: Ask) -> Json:
        mask = masks.given(ask.query, "read_mask")
        with self._database.reading() as transaction:
            rows, token = paging.page(transaction, self._listing, (self._project.parent,), ask.query)
            found = versions.defaults_shown(transaction, [records.of_row(row) for row in rows])
        shown = [masks.read(mask, _visible(model, ask), Model) for model in found]
        return _listed(shown, token)

    async def _list_versions(self, ask: Ask) -> Json:
        return await asyncio.to_thread(self._page_of_versions, ask)

    def _page_of_versions(self, ask: Ask) -> Json:
        name, _ = self._named(ask)
        mask = masks.given(ask.query, "read_mask")
        with self._database.reading() as transaction:
            model, _ = versions.resolved(transaction, name)
            rows, token = paging.page(transaction, _VERSIONS, (name,), ask.query)
            shown = []
            for row in rows:
                one = _visible(versions.shown(transaction, model, records.of_row(row)), ask)
                # Here the version stands in the name, unlike in a GET.
                shown.append(masks.read(mask, {**one, "name": row["name"]}, Model))
        return _listed(shown, token)

    async def _update(self, ask: Ask) -> Json:
        name, version = self._named(ask)
        form = read(Model, ask.body, "model")
        mask = masks.given(ask.query, "update_mask")
        everything = versions.OF_VERSION if version not in (None, "-") else versions.OF_MODEL
        # Google's client names no version when it changes one that it has read: the body says which.
        either = versions.OF_VERSION | (everything & versions.OF_MODEL)
        mutable = everything if mask.strip() == "*" or version not in (None, "-") else either
        fields = masks.changed(mask, Model, mutable, elsewhere=_ELSEWHERE)
        if not fields <= versions.OF_MODEL and not fields <= versions.OF_VERSION:
            raise InputError(
                "one call cannot change both the model and a version", field="update_mask", remedy="make two calls"
            )

        def work(transaction: Transaction) -> Json:
            return versions.changed(transaction, name, version, form, fields)

        return _visible(await asyncio.to_thread(self._database.write, work), ask)

    async def _merge_aliases(self, ask: Ask) -> Json:
        name, version = self._with_version(ask)
        form = read(MergeVersionAliases, ask.body)

        def work(transaction: Transaction) -> Json:
            return versions.merge_aliases(transaction, name, version, form.version_aliases)

        return _visible(await asyncio.to_thread(self._database.write, work), ask)

    async def _delete(self, ask: Ask) -> Json:
        name, version = self._named(ask)
        if version is not None:
            raise InputError(
                "a version is deleted by :deleteVersion", field="name", remedy="leave the version out"
            )
        return await self._operations.perform(ask, DELETE, resource=name, request={"name": name})

    async def _delete_version(self, ask: Ask) -> Json:
        name, version = self._with_version(ask)
        request = {"name": name, "version": version}
        return await self._operations.perform(ask, DELETE_VERSION, resource=name, request=request)

    def _named(self, ask: Ask) -> tuple[str, str | None]:
        """The model that a path names, and the version after its ``@``."""
        id_, at, version = ask.path["model"].partition("@")
        if at and not version:
            raise InputError("a version is missing after @", field="name", remedy="write MODEL@VERSION, or MODEL")
        return f"{self._project.parent}/models/{id_}", version or None

    def _with_version(self, ask: Ask) -> tuple[str, str]:
        name, version = self._named(ask)
        if version is None:
            raise InputError("a version must be named", field="name", remedy="write MODEL@VERSION")
        return name, version


def _delete(transaction: Transaction, request: Json) -> Json:
    versions.delete_model(transaction, request["name"])
    return {}


def _delete_version(transaction: Transaction, request: Json) -> Json:
    versions.delete_version(transaction, request["name"], request["version"])
    return {}


def _visible(model: Json, ask: Ask) -> Json:
    """A Model without endpoints of which the caller may not know."""
    where = [each for each in model.get("deployedModels", ()) if ask.may(each["endpoint"].rpartition("/")[2])]
    rest = {key: value for key, value in model.items() if key != "deployedModels"}
    return {**rest, "deployedModels": where} if where else rest


def _listed(models: list[Json], token: str) -> Json:
    return {**({"models": models} if models else {}), **({"nextPageToken": token} if token else {})}
