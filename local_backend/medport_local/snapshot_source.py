"""Where the container's model comes from: a directory, a bucket or the hub, whichever its settings name."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from medport._extras import load
from medport.errors import ConfigError
from medport_local.sources import BucketSource, HubSource, Source, download
from medport_local.sources.hub import REPOSITORY

logger = logging.getLogger(__name__)

_BUCKET_FIELD, _HUB_FIELD = "AIP_STORAGE_URI", "MODEL_ID"


@contextmanager
def obtain(places: Sequence[str], *, revision: str | None = None, hub_token: str | None = None) -> Iterator[Path]:
    """The directory that holds the model; one that was downloaded is removed afterwards.

    Args:
        places: where the model is said to be, most decisive first. The first that is a directory or ``gs://…`` is
            taken, and a hub id only where there is no such.
        revision: commit of the hub's repository, 40 hex digits.
        hub_token: for gated repositories.

    Raises:
        ConfigError: there is no such place, it holds no model, or a package for it is missing.
        AuthError: the files may not be read.
        ConnectionFailed: the bucket or the hub cannot be reached.
        VerificationError: a file did not arrive as it was sent, or the model is not one that is loaded.
    """
    place = _chosen([place for place in places if place])
    if Path(place).is_dir():
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="medport-model-") as made:  # 0700 by contract
        source = _source(place, revision, hub_token)
        try:
            download(source, Path(made), told=lambda line: logger.info("%s", line))
        finally:
            source.close()
        yield Path(made)


def _chosen(places: Sequence[str]) -> str:
    for place in places:
        if Path(place).is_dir() or place.startswith("gs://"):
            return place
    for place in places:
        if REPOSITORY.fullmatch(place):
            return place
    if not places:
        raise ConfigError(
            "no model was named", field=_BUCKET_FIELD, remedy="set it, --model or MODEL_ID to the model's place"
        )
    raise ConfigError(
        "is neither a directory here, nor gs://BUCKET/PREFIX, nor a hub id", field="model", remedy="check the path"
    )


def _source(place: str, revision: str | None, token: str | None) -> Source:
    if place.startswith("gs://"):
        return BucketSource(place, field=_BUCKET_FIELD)
    if revision is None:
        raise ConfigError(
            "a model of the hub needs a revision",
            field="MEDPORT_REVISION",
            remedy="give the 40 hex digits of a commit",
        )
    return HubSource(
        place,
        revision,
        endpoint=load("huggingface_hub.constants", extra="local").ENDPOINT,
        token=SecretStr(token) if token else None,
        token_from="HF_TOKEN",  # noqa: S106  the variable's name
        field=_HUB_FIELD,
    )
