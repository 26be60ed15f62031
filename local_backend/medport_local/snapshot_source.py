"""Where a model's files come from: a directory, a bucket, or the hub. What arrives is verified by ``snapshot``."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medport._extras import load
from medport.errors import AuthError, ConfigError, ConnectionFailed, NotFound, VerificationError

logger = logging.getLogger(__name__)

_WANTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.(safetensors|json|jinja|model)")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model"]
_GCS = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_AT_ONCE = 4
_TIMEOUT_S = 600


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
        VerificationError: a file did not arrive as it was sent.
    """
    place = _chosen([place for place in places if place])
    if Path(place).is_dir():
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="medport-model-") as made:  # 0700 by contract
        directory = Path(made)
        if place.startswith("gs://"):
            _from_bucket(place, directory)
        else:
            _from_hub(place, revision, hub_token, directory)
        yield directory


def _chosen(places: Sequence[str]) -> str:
    for place in places:
        if Path(place).is_dir() or place.startswith("gs://"):
            return place
    for place in places:
        if _HUB_ID.fullmatch(place):
            return place
    if not places:
        raise ConfigError(
            "no model was named",
            field="AIP_STORAGE_URI",
            remedy="set it, --model or MODEL_ID to the model's place",
        )
    raise ConfigError(
        "is neither a directory here, nor gs://BUCKET/PREFIX, nor a hub id", field="model", remedy="check the path"
    )


def _from_bucket(uri: str, directory: Path) -> None:
    named = _GCS.fullmatch(uri)
    if named is None:
        raise ConfigError("is not gs://BUCKET/PREFIX", field="AIP_STORAGE_URI")
    bucket, prefix = named[1], (named[2] or "").strip("/")
    storage = load("google.cloud.storage", extra="fetch")
    with _bucket_faults(bucket):
        client = storage.Client()
        prefix = f"{prefix}/" if prefix else ""
        found = list(client.list_blobs(bucket, prefix=prefix or None, timeout=_TIMEOUT_S))
        names = {blob.name.removeprefix(prefix): blob for blob in found if not blob.name.endswith("/")}
        wanted = {name: blob for name, blob in names.items() if _WANTED.fullmatch(name)}
        if not any(name.endswith(".safetensors") for name in wanted):
            raise ConfigError(
                f"holds no *.safetensors in the bucket {bucket}",
                field="AIP_STORAGE_URI",
                remedy="name the folder that holds config.json and the weights",
            )
        total = sum(blob.size for blob in wanted.values())
        _check_space(total, directory)
        logger.info(
            "fetching %d files, %.1f GB; %d others stay", len(wanted), total / 1e9, len(names) - len(wanted)
        )
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="medport-model") as pool:
            list(pool.map(lambda item: _fetch_blob(item[1], directory / item[0]), wanted.items()))


def _fetch_blob(blob: Any, target: Path) -> None:
    # The listed generation is fetched, and its crc32c compared by the library.
    blob.download_to_filename(str(target), checksum="crc32c", raw_download=True, timeout=_TIMEOUT_S)
    if target.stat().st_size != blob.size:
        raise VerificationError(
            f"{target.name}: did not arrive whole", field=target.name, remedy="start the container again"
        )


@contextmanager
def _bucket_faults(bucket: str) -> Iterator[None]:
    core = load("google.api_core.exceptions", extra="fetch")
    auth = load("google.auth.exceptions", extra="fetch")
    requests = load("requests", extra="fetch")
    checks = load("google.cloud.storage.exceptions", extra="fetch")
    field = "AIP_STORAGE_URI"
    try:
        yield
    except (core.Forbidden, core.Unauthorized, auth.GoogleAuthError) as fault:
        raise AuthError(
            f"the bucket {bucket} may not be read",
            field=field,
            remedy="grant the container's service account roles/storage.objectViewer on it",
        ) from fault
    except core.NotFound as fault:
        raise NotFound(f"there is no bucket {bucket}", field=field, remedy="check the name") from fault
    except checks.DataCorruption as fault:
        raise VerificationError(
            "a file's checksum is not the bucket's", field=field, remedy="start the container again"
        ) from fault
    except (core.GoogleAPIError, requests.RequestException) as fault:
        raise ConnectionFailed(
            f"the bucket {bucket} cannot be read ({type(fault).__name__})", field=field, remedy="try again"
        ) from fault


def _check_space(size_bytes: int, directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if size_bytes > free:
        raise ConfigError(
            f"the model needs {size_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            field="TMPDIR",
            remedy="let TMPDIR name a larger disk",
        )


def _from_hub(repo_id: str, revision: str | None, token: str | None, directory: Path) -> None:
    if revision is None:
        raise ConfigError(
            "a model of the hub needs a revision",
            field="MEDPORT_REVISION",
            remedy="give the 40 hex digits of a commit",
        )
    hub = load("huggingface_hub", extra="local")
    errors = load("huggingface_hub.errors", extra="local")
    try:
        hub.snapshot_download(
            repo_id, revision=revision, local_dir=directory, token=token or False, allow_patterns=_HUB_PATTERNS
        )
    except errors.GatedRepoError as fault:
        raise AuthError(
            "the repository is gated",
            field="HF_TOKEN",
            remedy="accept its terms and give a token that may read it",
        ) from fault
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as fault:
        raise NotFound(
            "the hub has no such repository or revision, or hides it",
            field="MODEL_ID",
            remedy="check both, and HF_TOKEN",
        ) from fault
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as fault:
        raise ConnectionFailed(
            f"the hub cannot be read ({type(fault).__name__})",
            field="MODEL_ID",
            remedy="name a directory or gs:// instead, or let the container reach the hub (HF_HUB_OFFLINE=0)",
        ) from fault
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # the downloader's own notes
