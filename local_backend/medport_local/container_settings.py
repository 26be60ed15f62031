"""The environment and the arguments that Vertex starts a container with, read once into one value.

The names are those of Vertex's custom-container contract, of the two published serving containers, and of vLLM's
command line, so that a deployment written for them needs no new settings. What means nothing here is accepted and
named in ``unused``; what is not known is refused, for a misspelt pin would pin nothing.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from medport.errors import ConfigError
from medport_local.byte_sizes import parse_size
from medport_local.selection import image_digest_of

Dialect = Literal["vllm", "dicom"]
Dtype = Literal["auto", "float32", "bfloat16"]
_DIALECTS: Mapping[str, Dialect] = {"vllm": "vllm", "dicom": "dicom"}
_DTYPES: Mapping[str, Dtype] = {"auto": "auto", "float32": "float32", "bfloat16": "bfloat16"}

_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
_OURS = {
    "MEDPORT_REVISION", "MEDPORT_SNAPSHOT_SHA256", "MEDPORT_DIALECT", "MEDPORT_ALLOW_FETCH", "MEDPORT_DEVICE",
    "MEDPORT_DTYPE", "MEDPORT_EMBED_DTYPE", "MEDPORT_KV_CACHE", "MEDPORT_REUSE", "MEDPORT_STALL_MS",
    "MEDPORT_MAX_WAIT", "MEDPORT_PARENT", "MEDPORT_STORE", "MEDPORT_STORE_OWNER", "MEDPORT_LOCK",
    "MEDPORT_IMAGE_DIGEST",
}  # fmt: skip
_UNUSED_VARIABLES = re.compile(
    r"(ENABLE_CLOUD_LOGGING|CLOUD_OPS_\w+|ENDPOINT_LOG_NAME|ICC_PROFILE_CACHE_\w+|MODEL_SOURCE|MODEL_TO_DISK"
    r"|IMAGE_INPUT_COMPRESSION_FORMAT|IMAGE_INPUT_JPEG_COMPRESSION_QUALITY|IMAGE_SIZE_OPTIMIZATION"
    r"|MAX_PARALLEL_DOWNLOAD_WORKERS|THREAD_POOL_MAX_WORKERS|THREAD_POOL_TIMEOUT|VLLM_\w+)\Z"
)
# Of vLLM's options: those that have no meaning for this engine, with and without a value.
_UNUSED_OPTIONS = (
    "block-size", "chat-template", "chat-template-content-format", "config-format", "device",
    "distributed-executor-backend", "download-dir", "dtype", "generation-config", "gpu-memory-utilization",
    "kv-cache-dtype", "load-format", "max-log-len", "max-model-len", "max-num-batched-tokens",
    "mm-processor-kwargs", "model-name", "pipeline-parallel-size", "quantization", "seed", "served-model-name",
    "swap-space", "tensor-parallel-size", "tokenizer", "tokenizer-mode", "tokenizer-revision", "uvicorn-log-level",
)  # fmt: skip
_UNUSED_FLAGS = (
    "disable-log-requests", "disable-log-stats", "enable-chunked-prefill", "enable-prefix-caching",
    "enforce-eager", "no-enable-prefix-caching", "trust-remote-code",
)  # fmt: skip
_LAUNCHERS = ("python", "python3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSettings:
    """How one container serves one model. Each field says which variable or argument sets it."""

    host: str = "0.0.0.0"  # noqa: S104  Vertex connects from outside the container
    """``--host``"""
    port: int = 8080
    """``AIP_HTTP_PORT``, ``--port``"""
    predict_route: str = "/predict"
    """``AIP_PREDICT_ROUTE``"""
    health_route: str = "/health"
    """``AIP_HEALTH_ROUTE``"""
    models: tuple[str, ...] = ()
    """Where the model is said to be, most decisive first: ``--model``, ``AIP_STORAGE_URI``, ``AIP_MODEL_DIR``,
    ``MODEL_ID``. Each is a directory, ``gs://…`` or a hub id; see ``snapshot_source.obtain``."""
    revision: str | None = None
    """``MEDPORT_REVISION``, ``--revision``: 40 hex digits."""
    snapshot_sha256: str | None = None
    """``MEDPORT_SNAPSHOT_SHA256``"""
    parent: str | None = None
    """``MEDPORT_PARENT``: the line by which a derived snapshot names the one that it was made from."""
    store: Path | None = None
    """``MEDPORT_STORE``: a store that the container is given. What it holds is not fetched, and a model that is
    named by ``sha256:…`` is nowhere else."""
    lock: Path | None = None
    """``MEDPORT_LOCK``: a lock of one model, and no other is served."""
    image_digest: str | None = None
    """``MEDPORT_IMAGE_DIGEST``: of the image that this is, for the provenance; 64 hex digits."""
    hub_token: str | None = field(default=None, repr=False)
    """``HF_TOKEN``"""
    input_width_px: int | None = None
    """``MODEL_INPUT_WIDTH``: must be the model's."""
    input_height_px: int | None = None
    """``MODEL_INPUT_HEIGHT``"""
    dialect: Dialect = "vllm"
    """``MEDPORT_DIALECT``: whose container a MedGemma speaks like."""
    device: str | None = None
    """``MEDPORT_DEVICE``"""
    dtype: Dtype = "auto"
    """``MEDPORT_DTYPE``, of MedGemma"""
    embed_dtype: Dtype = "auto"
    """``MEDPORT_EMBED_DTYPE``, of MedSigLIP"""
    kv_bytes: int | None = None
    """``MEDPORT_KV_CACHE``, such as ``8GiB``; ``None`` is a share of what is free."""
    reuse_bytes: int | None = None
    """``MEDPORT_REUSE``, a size too; without it nothing of a request is kept once it is over."""
    stall_ms: int | None = None
    """``MEDPORT_STALL_MS``"""
    max_wait_s: int | None = None
    """``MEDPORT_MAX_WAIT``, in seconds"""
    allow_fetch: tuple[str, ...] = ()
    """``APPROVED_DICOM_STORE_SOURCE_LIST``, ``APPROVED_GCS_SOURCE_LIST``, ``MEDPORT_ALLOW_FETCH``. Empty: nothing
    is fetched."""
    max_batch: int | None = None
    """``IMAGE_`` and ``TEXT_EMBEDDINGS_PER_BATCH_PREDICTION``: the smaller one."""
    max_embeddings: int | None = None
    """``MAX_EMBEDDINGS_PER_REQUEST``; ``-1`` is no limit of its own."""
    batch_prediction: bool = False
    """``BATCH_PREDICTION``: every answer is a list, as a batch job needs it."""
    max_running: int | None = None
    """``--max-num-seqs``"""
    max_images: int | None = None
    """``--limit-mm-per-prompt image=N``"""
    unused: tuple[str, ...] = ()
    """Variables and arguments that were given and change nothing."""

    def __post_init__(self) -> None:
        for name, route in (("AIP_PREDICT_ROUTE", self.predict_route), ("AIP_HEALTH_ROUTE", self.health_route)):
            if not re.fullmatch(r"/[A-Za-z0-9._~:@/-]*", route):
                raise ConfigError("is not an absolute path", field=name, remedy="give one such as /predict")
        if self.predict_route == self.health_route:
            raise ConfigError("is the health route as well", field="AIP_PREDICT_ROUTE", remedy="give two paths")
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ConfigError(
                "is not a commit; a branch or a tag moves",
                field="MEDPORT_REVISION",
                remedy="give the 40 hex digits of a commit",
            )
        if self.snapshot_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.snapshot_sha256):
            raise ConfigError("is not a sha256", field="MEDPORT_SNAPSHOT_SHA256", remedy="give 64 hex digits")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], arguments: Sequence[str] = ()) -> ContainerSettings:
        """Read the variables, then the arguments, which say more.

        Raises:
            ConfigError: a value is wrong, two of them contradict each other, or a name is not known.
        """
        read = _Variables(environment)
        read.refuse_unknown()
        settings = cls(
            port=read.whole("AIP_HTTP_PORT", 1, 65_535) or 8080,
            predict_route=read.text("AIP_PREDICT_ROUTE") or "/predict",
            health_route=read.text("AIP_HEALTH_ROUTE") or "/health",
            models=read.present("AIP_STORAGE_URI", "AIP_MODEL_DIR", "MODEL_ID"),
            revision=read.text("MEDPORT_REVISION"),
            snapshot_sha256=read.text("MEDPORT_SNAPSHOT_SHA256"),
            parent=read.text("MEDPORT_PARENT"),
            store=read.path("MEDPORT_STORE"),
            lock=read.path("MEDPORT_LOCK"),
            image_digest=image_digest_of(read.text("MEDPORT_IMAGE_DIGEST")),
            hub_token=read.text("HF_TOKEN"),
            input_width_px=read.whole("MODEL_INPUT_WIDTH", 1, 65_536),
            input_height_px=read.whole("MODEL_INPUT_HEIGHT", 1, 65_536),
            dialect=read.dialect(),
            device=read.text("MEDPORT_DEVICE"),
            dtype=read.dtype("MEDPORT_DTYPE"),
            embed_dtype=read.dtype("MEDPORT_EMBED_DTYPE"),
            kv_bytes=read.size("MEDPORT_KV_CACHE"),
            reuse_bytes=read.size("MEDPORT_REUSE"),
            stall_ms=read.whole("MEDPORT_STALL_MS", 1, 60_000),
            max_wait_s=read.whole("MEDPORT_MAX_WAIT", 1, 86_400),
            allow_fetch=read.sources(),
            max_batch=read.smallest(
                "IMAGE_EMBEDDINGS_PER_BATCH_PREDICTION", "TEXT_EMBEDDINGS_PER_BATCH_PREDICTION"
            ),
            max_embeddings=read.limit("MAX_EMBEDDINGS_PER_REQUEST"),
            batch_prediction=read.truth("BATCH_PREDICTION"),
            unused=tuple(sorted(name for name, value in environment.items() if value and _unused(name))),
        )
        return settings._with_arguments(arguments, port_is_set=read.text("AIP_HTTP_PORT") is not None)

    def _with_arguments(self, arguments: Sequence[str], *, port_is_set: bool) -> ContainerSettings:
        given, unused = _parsed(arguments)
        if port_is_set and given.port not in (None, self.port):
            raise ConfigError(
                f"is {given.port}, and Vertex will ask on AIP_HTTP_PORT {self.port}",
                field="--port",
                remedy="give the container port and --port the same number",
            )
        if self.revision is not None and given.revision not in (None, self.revision):
            raise ConfigError("is another than MEDPORT_REVISION", field="--revision", remedy="give one of them")
        changes = {
            "host": given.host,
            "port": given.port,
            "revision": given.revision,
            "models": (given.model, *self.models) if given.model else None,
            "max_running": given.max_num_seqs,
            "max_images": given.limit_mm_per_prompt,
            "unused": (*self.unused, *unused),
        }
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


class _Variables:
    """The environment; an empty value is none, as templates leave them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def refuse_unknown(self) -> None:
        for name, value in self._environment.items():
            if name.startswith("MEDPORT_") and name not in _OURS and value:
                raise ConfigError(
                    "is not a variable that this container reads", field=name, remedy=_near(name, _OURS)
                )

    def text(self, name: str) -> str | None:
        return self._environment.get(name, "").strip() or None

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        return None if value is None else Path(value)

    def present(self, *names: str) -> tuple[str, ...]:
        return tuple(value for name in names if (value := self.text(name)))

    def whole(self, name: str, least: int, most: int) -> int | None:
        return _whole(name, self.text(name), least, most)

    def smallest(self, *names: str) -> int | None:
        return min((n for name in names if (n := self.whole(name, 1, 65_536)) is not None), default=None)

    def limit(self, name: str) -> int | None:
        value = self.whole(name, -1, 10_000_000)
        if value == 0:
            raise ConfigError("allows nothing", field=name, remedy="give a positive number, or -1 for no limit")
        return None if value == -1 else value

    def truth(self, name: str) -> bool:
        value = (self.text(name) or "false").lower()
        if value not in _TRUE | _FALSE:
            raise ConfigError("is neither true nor false", field=name, remedy="give true or false")
        return value in _TRUE

    def dialect(self) -> Dialect:
        value = self.text("MEDPORT_DIALECT") or "vllm"
        if value not in _DIALECTS:
            raise ConfigError(f"{value:.20} is no dialect", field="MEDPORT_DIALECT", remedy="give vllm or dicom")
        return _DIALECTS[value]

    def dtype(self, name: str) -> Dtype:
        value = self.text(name) or "auto"
        if value not in _DTYPES:
            raise ConfigError("is not known", field=name, remedy=f"give {', '.join(_DTYPES)}")
        return _DTYPES[value]

    def size(self, name: str) -> int | None:
        value = self.text(name)
        return None if value is None else parse_size(value, field=name)

    def sources(self) -> tuple[str, ...]:
        buckets = self._listed("APPROVED_GCS_SOURCE_LIST")
        return (
            *self._listed("APPROVED_DICOM_STORE_SOURCE_LIST"),
            *(entry if entry.startswith("gs://") else f"gs://{entry}" for entry in buckets),
            *self._listed("MEDPORT_ALLOW_FETCH"),
        )

    def _listed(self, name: str) -> tuple[str, ...]:
        return tuple(entry.strip().rstrip("/") for entry in (self.text(name) or "").split(",") if entry.strip())


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """vLLM's command line as far as it says something here; and the options that do not."""
    spelt = [_hyphenated(each) for each in _without_launcher(list(arguments))]
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name in ("host", "model", "revision"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--port", type=lambda text: _whole("--port", text, 1, 65_535))
    parser.add_argument("--max-num-seqs", type=lambda text: _whole("--max-num-seqs", text, 1, 4096))
    parser.add_argument("--limit-mm-per-prompt", type=_images_per_prompt)
    known = [action.option_strings[0] for action in parser._actions]
    for name in _UNUSED_OPTIONS:
        parser.add_argument(f"--{name}", dest=f"unused {name}")
    for name in _UNUSED_FLAGS:
        parser.add_argument(f"--{name}", nargs="?", const="true", dest=f"unused {name}")
    given, unknown = parser.parse_known_args(spelt)
    if unknown:
        name = unknown[0].partition("=")[0]
        options = [*known, *(f"--{other}" for other in (*_UNUSED_OPTIONS, *_UNUSED_FLAGS))]
        # What does not look like an option is a stray value, which may be anything.
        named = name if re.fullmatch(r"--[a-z0-9-]{1,60}", name) else "arguments"
        raise ConfigError("is not an option that this container knows", field=named, remedy=_near(name, options))
    unused = [
        f"--{key.removeprefix('unused ')}" for key, value in vars(given).items() if "unused " in key and value
    ]
    return given, unused


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Its messages quote the values; only the option's name is repeated.
        named = re.search(r"--[a-z-]+", message)
        raise ConfigError(
            "has no value", field=named[0] if named else "arguments", remedy="give it as --option=VALUE"
        )


def _without_launcher(arguments: list[str]) -> list[str]:
    """Published deployments name vLLM's own server first; here the image's entry point is the server."""
    if arguments and arguments[0].rpartition("/")[2] in _LAUNCHERS and arguments[1:2] == ["-m"]:
        return arguments[3:]
    return arguments


def _hyphenated(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _images_per_prompt(text: str) -> int | None:
    """``image=16``, or ``{"image": 16}``."""
    try:
        limits: Any = json.loads(text)
    except ValueError:
        limits = dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair)
    if not isinstance(limits, dict) or "image" not in limits:
        raise ConfigError("limits no images", field="--limit-mm-per-prompt", remedy="give image=16")
    return _whole("--limit-mm-per-prompt", str(limits["image"]), 0, 4096)


def _whole(name: str, text: str | None, least: int, most: int) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"-?\d{1,9}", text.strip()) or not least <= int(text) <= most:
        raise ConfigError(f"is not a whole number from {least} to {most}", field=name)
    return int(text)


def _unused(name: str) -> bool:
    return _UNUSED_VARIABLES.match(name) is not None


def _near(name: str, known: Sequence[str] | set[str]) -> str:
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else f"known are {', '.join(sorted(known)[:8])} and others"
