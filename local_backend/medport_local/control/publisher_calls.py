"""Calls that look at Model Garden: one model, a list, a recommendation. The first two are about no project.

Source: Vertex AI REST reference, publishers.models (v1 and v1beta1), projects.locations.recommendSpec (v1beta1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from medport.errors import InputError
from medport.wire.vertex import filter_terms
from medport_local.control.asks import Ask, Json, Row
from medport_local.control.forms import read
from medport_local.control.garden_forms import RecommendSpec
from medport_local.control.masks import given
from medport_local.control.project import Project
from medport_local.control.publishers import Catalogue, PublisherModel

LARGEST_PAGE = 1000
_REMEDY = 'use is_hf_wildcard(true), is_hf_wildcard(false) and model_user_id=~"(?i).*WORD.*", joined by AND'
_WORD = r'"(?:\(\?i\))?(?:\.\*)?(?P<{}>[A-Za-z0-9_./@ -]*?)(?:\.\*)?"'
# Google's client asks for the word in the id or in the display name, which hold the same words here.
_TERM = re.compile(
    r"is_hf_wildcard\((?P<hub>true|false)\)"
    r"|(?P<verified>labels\.VERIFIED_DEPLOYMENT_CONFIG\s*=\s*\"?VERIFIED_DEPLOYMENT_SUCCEED\"?)"
    rf"|\(?\s*(?:model_user_id|display_name)\s*=~\s*{_WORD.format('word')}"
    rf"(?:\s+OR\s+(?:model_user_id|display_name)\s*=~\s*{_WORD.format('other')})?\s*\)?"
)


class PublisherCalls:
    """The calls, over one catalogue."""

    def __init__(self, project: Project, catalogue: Catalogue) -> None:
        self._project = project
        self._catalogue = catalogue

    def rows(self) -> tuple[Row, ...]:
        """The calls that this answers."""
        return (
            Row(
                method="GET",
                path="/{api}/publishers/{publisher}/models/{model}",
                handler=self.get,
                verb="aiplatform.publishers.get",
                operation="getPublisherModel",
            ),
            Row(
                method="GET",
                path="/v1beta1/publishers/{publisher}/models",
                handler=self.list,
                verb="aiplatform.publishers.list",
                operation="listPublisherModels",
            ),
            Row(
                method="POST",
                path="/v1beta1/projects/{project}/locations/{location}:recommendSpec",
                handler=self.recommend,
                verb="aiplatform.modelGarden.recommend",
                operation="recommendSpec",
            ),
        )

    async def get(self, ask: Ask) -> Json:
        """One model, by any of its names."""
        model = self._catalogue.find(f"publishers/{ask.path['publisher']}/models/{ask.path['model']}")
        hub = given(ask.query, "is_hugging_face_model").lower() == "true"
        return model.shown(self._catalogue.image, hub=hub)

    async def list(self, ask: Ask) -> Json:
        """The models of a publisher, or of all (``-`` and ``*``); those of the hub if the filter asks for them."""
        wanted = given(ask.query, "filter")
        hub, fits = _filter(wanted)
        publisher = ask.path["publisher"]
        listed = [
            model for model in self._catalogue.models() if publisher in ("*", "-", model.publisher) and fits(model)
        ]
        if hub:
            listed = _first_of(listed, lambda model: model.model_id)
        elif given(ask.query, "list_all_versions").lower() != "true":
            listed = _first_of(listed, lambda model: f"{model.publisher}/{model.name}")
        start, size = _start(given(ask.query, "page_token") or "0"), _size(given(ask.query, "page_size"))
        page = [model.shown(self._catalogue.image, hub=hub) for model in listed[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(listed) else {}
        return {"publisherModels": page, **more}

    async def recommend(self, ask: Ask) -> Json:
        """Machines for weights of the caller's own: those of the model that their path names, or all.

        The files are not read, so nothing else tells which model they were made from.
        """
        uri = read(RecommendSpec, ask.body).gcs_uri.casefold()
        published = [model for model in self._catalogue.models() if model.published]
        named = [model for model in published if model.version.casefold() in uri]
        if named:
            model = max(named, key=lambda model: len(model.version))
            base, spec, machines = {"baseModel": model.resource}, model.spec(self._catalogue.image), model.machines
        else:
            image = {"imageUri": self._catalogue.image} if self._catalogue.image else {}
            base, spec = {}, image
            machines = list({each["machineType"]: each for model in published for each in model.machines}.values())
        specs = [{"machineSpec": machine, "containerSpec": spec} for machine in machines]
        region = self._project.location
        return {**base, "recommendations": [{"region": region, "spec": each} for each in specs], "specs": specs}


def _filter(wanted: str) -> tuple[bool, Callable[[PublisherModel], bool]]:
    """Whether the hub's models are asked for, and which."""
    hub, words = False, []
    for found in filter_terms(wanted, _TERM, remedy=_REMEDY):
        if found["hub"]:
            hub = found["hub"] == "true"
        elif not found["verified"]:
            words.append({word.casefold() for word in (found["word"], found["other"]) if word is not None})

    def fits(model: PublisherModel) -> bool:
        said = f"{model.resource} {model.model_id}".casefold()
        return all(any(word in said for word in each) for each in words)

    return hub, fits


def _first_of(models: Sequence[PublisherModel], key: Callable[[PublisherModel], str]) -> list[PublisherModel]:
    found: dict[str, PublisherModel] = {}
    for model in models:
        found.setdefault(key(model), model)
    return [*found.values()]


def _size(asked: str) -> int:
    if asked and (not asked.isdecimal() or len(asked) > 9):
        raise InputError("is not a whole number", field="page_size", remedy=f"give 1 to {LARGEST_PAGE}")
    return min(int(asked or "0"), LARGEST_PAGE) or LARGEST_PAGE


def _start(token: str) -> int:
    if not token.isdecimal() or len(token) > 9:
        raise InputError("is not one of this server", field="page_token", remedy="begin again without it")
    return int(token)
