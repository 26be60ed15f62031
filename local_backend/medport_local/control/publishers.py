"""Model Garden's catalogue: the published MedGemma and MedSigLIP models, and what this server itself can deploy.

``publisher_models.json`` holds, for each published model, the routes of its container and the machines it was seen
deployed on. Sources: Google's notebooks and READMEs of MedGemma and MedSigLIP, ``gcloud ai model-garden models
list-deployment-config`` as users reported it. What is not known is left out. It names no image: Google's are in a
registry that this server never asks; the operator may name the one that a deployment is to say.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from medport.errors import NotFound
from medport_local.model_identity import KnownModel, known_model

Json = dict[str, Any]

REVISION_LABEL = "medport-revision"
"""Of a deploy option: the commit of the snapshot that this server has of it. Without one it has none."""


class Available(Protocol):
    """A snapshot that this server can deploy."""

    @property
    def model_id(self) -> str:
        """Such as ``google/medgemma-4b-it``."""
        ...

    @property
    def revision(self) -> str | None:
        """Commit, 40 hex digits."""
        ...

    @property
    def snapshot_sha256(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherModel:
    """One version of one publisher's model."""

    publisher: str
    name: str
    version: str
    model_id: str
    """On the hub; of several versions it may be one and the same."""
    container: Json
    """ModelContainerSpec without the image."""
    machines: Sequence[Json]
    """MachineSpecs that it may be deployed on; none where any machine will do."""
    snapshots: Sequence[Available]
    """Those that this server has of it."""
    published: bool
    """Google publishes it under this name."""

    @property
    def resource(self) -> str:
        """``publishers/{publisher}/models/{name}@{version}``."""
        return f"publishers/{self.publisher}/models/{self.name}@{self.version}"

    @property
    def on_hub(self) -> str:
        """``publishers/hf-{owner}/models/{name}``, as Model Garden names models of Hugging Face."""
        owner, model = _owned(self.model_id)
        return f"publishers/hf-{owner}/models/{model}"

    @property
    def source_name(self) -> str:
        """What a Model version that is made from it says of its source."""
        if self.published or "/" not in self.model_id:
            return self.resource if self.published else self.model_id
        return "publishers/{}/models/{}".format(*_owned(self.model_id))

    @property
    def gated(self) -> KnownModel | None:
        """The model whose terms whoever uses it must have agreed to; ``None`` where no terms are known."""
        return known_model(self.model_id)

    def spec(self, image: str) -> Json:
        """ModelContainerSpec of a deployment: what to serve, by environment variables."""
        env = [{"name": "MODEL_ID", "value": self.model_id}]
        return {**({"imageUri": image} if image else {}), **self.container, "env": [*self.container["env"], *env]}

    def shown(self, image: str, *, hub: bool = False) -> Json:
        """google.cloud.aiplatform.v1beta1.PublisherModel in JSON.

        Args:
            image: of the container; ``""`` where none is named.
            hub: by its name on the hub, as Model Garden lists models of Hugging Face.
        """
        named = {"name": f"publishers/{self.publisher}/models/{self.name}", "versionId": self.version}
        options = [self._option(machine, image) for machine in self.machines or ({},)]
        return {
            **({"name": self.on_hub} if hub else named),
            "supportedActions": {"multiDeployVertex": {"multiDeployVertex": options}},
        }

    def _option(self, machine: Json, image: str) -> Json:
        title = (
            f"{self.version if self.published else self.model_id} on {machine.get('machineType', 'this server')}"
        )
        here = {REVISION_LABEL: revision_of(self.snapshots[0])} if self.snapshots else {}
        return {
            "modelDisplayName": self.display_name,
            "containerSpec": self.spec(image),
            **({"dedicatedResources": resources(machine)} if machine else {}),
            "deployTaskName": title,
            **({"deployMetadata": {"labels": here}} if here else {}),
        }

    @property
    def display_name(self) -> str:
        """Of the model and the endpoint where the caller gives none, in the form of Model Garden's own."""
        return f"{self.publisher}_{(self.version if self.published else self.name).replace('.', '_')}"


def resources(machine: Json) -> Json:
    """DedicatedResources of one replica."""
    return {**({"machineSpec": machine} if machine else {}), "minReplicaCount": 1, "maxReplicaCount": 1}


def revision_of(snapshot: Available) -> str:
    """What tells a snapshot from others of its model: its commit, or its sha256 if it has none."""
    return snapshot.revision or snapshot.snapshot_sha256


class Catalogue:
    """What can be named in a deployment.

    Args:
        available: the snapshots that the server has at this moment.
        image: URI of the container image that deployments say; ``""``: they say none.
    """

    def __init__(self, available: Callable[[], Sequence[Available]], image: str = "") -> None:
        self._available = available
        self.image = image

    def models(self) -> tuple[PublisherModel, ...]:
        """The published models, then each snapshot that the server has, by its own name and commit."""
        snapshots = tuple(self._available())
        return (*(_published(entry, snapshots) for entry in _data()["models"]), *_own(snapshots))

    def find(self, name: str, *, field: str = "name") -> PublisherModel:
        """The model of a name, letter case aside.

        Args:
            name: ``publishers/{publisher}/models/{model}`` with or without ``@{version}``, or without the words
                ``publishers`` and ``models`` as on the hub.

        Raises:
            NotFound: there is none.
        """
        models = self.models()
        found = _NAME.fullmatch(name.casefold())
        if found is not None:
            owner, model, version = found["owner"], found["model"], found["version"]
            for each in models:
                if (each.publisher, each.name, each.version.casefold()) == (owner, model, version):
                    return each
            # A name of the hub comes before one of a family, which means the family's first.
            for each in models if version is None else ():
                if each.model_id.casefold() == f"{owner}/{model}":
                    return each
            for each in models if version is None else ():
                if (each.publisher, each.name) == (owner, model):
                    return each
        raise NotFound(
            f"Publisher Model `{name:.200}` is not found.",
            field=field,
            remedy=f"name one of {', '.join(dict.fromkeys(each.resource for each in models))}",
        )


_NAME = re.compile(
    r"(?:publishers/)?(?:hf-)?(?P<owner>[^/@]+)/(?:models/)?(?P<model>[^/@]+)(?:@(?P<version>[^/@]+))?"
)


@cache
def _data() -> Mapping[str, Any]:
    data: Mapping[str, Any] = json.loads(Path(__file__).with_name("publisher_models.json").read_text("utf-8"))
    return data


def _published(entry: Mapping[str, str], snapshots: Sequence[Available]) -> PublisherModel:
    data = _data()
    return PublisherModel(
        publisher="google",
        name=entry["name"],
        version=entry["version"],
        model_id=entry["id"],
        container=data["containers"][entry["container"]],
        machines=data["machines"][entry["machines"]],
        snapshots=[each for each in snapshots if each.model_id == entry["id"]],
        published=True,
    )


def _own(snapshots: Sequence[Available]) -> list[PublisherModel]:
    models = []
    same = Counter((each.model_id, each.revision) for each in snapshots)
    for each in snapshots:
        owner, model = _owned(each.model_id)
        alone = same[each.model_id, each.revision] == 1
        models.append(
            PublisherModel(
                publisher=_slug(owner),
                name=_slug(model),
                version=revision_of(each) if alone else each.snapshot_sha256,
                model_id=each.model_id,
                container={"env": []},
                machines=(),
                snapshots=[each],
                published=False,
            )
        )
    return models


def _owned(model_id: str) -> tuple[str, str]:
    """Owner and name; who has no owner is of this server."""
    owner, slash, model = model_id.partition("/")
    return (owner, model) if slash else ("local", owner)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.casefold())
