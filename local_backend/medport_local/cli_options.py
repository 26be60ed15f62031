"""The options of ``medport serve`` that say how models run: what stands on the command line, and what it means."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from medport.errors import ConfigError
from medport_local.byte_sizes import parse_size

if TYPE_CHECKING:
    from medport_local.engine.protocol import DtypeRule, EngineLimits
    from medport_local.model_options import EngineName, ModelOptions

_PANEL = "Engine"

Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1 or mps; by default CUDA, else Apple's GPU, else the CPU.", rich_help_panel=_PANEL
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16",
        help="MedGemma's arithmetic; auto is bfloat16, and float32 for a small model.",
        rich_help_panel=_PANEL,
    ),
]
EmbedDtype = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16",
        help="MedSigLIP's; auto measures whether bfloat16 gives the same vectors sooner.",
        rich_help_panel=_PANEL,
    ),
]
MaxRunning = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="Answers that are written side by side; 16.", rich_help_panel=_PANEL),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for keys and values, such as 8GiB; a share of what is free.",
        rich_help_panel=_PANEL,
    ),
]
Reuse = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="Memory in which beginnings of prompts and images of past requests are kept for the same key, 15 "
        "minutes at most, so that its next one begins sooner. 0: nothing of a request is kept once it is over.",
        rich_help_panel=_PANEL,
    ),
]
StallMs = Annotated[
    float | None,
    typer.Option(
        min=1,
        metavar="MS",
        help="How long a new prompt may hold up answers that are being written; 200.",
        rich_help_panel=_PANEL,
    ),
]
MaxWait = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        metavar="SECONDS",
        help="Who would wait longer for the first token is told to come back; 120.",
        rich_help_panel=_PANEL,
    ),
]
AdapterDirs = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=DIR",
        help="A LoRA adapter in PEFT's layout, asked for as model medgemma+NAME. Repeatable.",
        rich_help_panel=_PANEL,
    ),
]
EngineKind = Annotated[
    str,
    typer.Option(
        metavar="torch|vllm",
        help="Of text generation. vllm needs a record of medport engine verify for this snapshot.",
        rich_help_panel=_PANEL,
    ),
]
EngineState = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where the records of medport engine verify are; ~/.local/state/medport.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What was given for the engine. Sizes are read at once, for they need no torch.

    Raises:
        ConfigError: a size is none, or an adapter is not ``NAME=DIR``.
    """

    device: str | None = None
    dtype: str = "auto"
    embed_dtype: str = "auto"
    max_running: int | None = None
    kv_cache: str | None = None
    reuse: str = "0"
    stall_ms: float | None = None
    max_wait_s: float | None = None
    adapters: Sequence[str] = ()
    engine: str = "torch"
    engine_state: Path | None = None
    kv_bytes: int | None = field(init=False)
    reuse_bytes: int = field(init=False)
    directories: Mapping[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        kv_bytes = None if self.kv_cache is None else parse_size(self.kv_cache, field="kv-cache")
        for name, value in (
            ("kv_bytes", kv_bytes),
            ("reuse_bytes", parse_size(self.reuse, field="reuse")),
            ("directories", named_directories(self.adapters, "adapter", example="chest=DIR")),
        ):
            object.__setattr__(self, name, value)

    def limits(self) -> EngineLimits:
        """What the engine may take and hold; its own defaults for what was not given."""
        from medport_local.engine.protocol import EngineLimits

        given = {
            "max_running": self.max_running,
            "kv_bytes": self.kv_bytes,
            "stall_ms": self.stall_ms,
            "max_wait_s": self.max_wait_s,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return EngineLimits(reuse_bytes=self.reuse_bytes, **changes)

    def models(self) -> ModelOptions:
        """How models are loaded.

        Raises:
            ConfigError: a name is not known, or options do not go together.
        """
        from medport_local.model_options import ModelOptions

        return ModelOptions(
            device=self.device,
            # Checked there.
            dtype=cast("DtypeRule", self.dtype),
            embed_dtype=cast("DtypeRule", self.embed_dtype),
            engine=cast("EngineName", self.engine),
            adapters=self.directories,
            engine_state=self.engine_state or default_state(),
        )


def named_directories(options: Sequence[str], field: str, *, example: str) -> dict[str, Path]:
    """``NAME=DIR`` each. Raises as ``named_values``."""
    return {
        name: Path(value) for name, value in named_values(options, field, form="NAME=DIR", example=example).items()
    }


def named_values(options: Sequence[str], field: str, *, form: str, example: str) -> dict[str, str]:
    """``NAME=VALUE`` each.

    Raises:
        ConfigError: one is not, or a name is given twice. Names ``field``.
    """
    found: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"is not {form}", field=field, remedy=f"give --{field} {example}")
        if name in found:
            raise ConfigError(f"{name} is given twice", field=field)
        found[name] = value
    return found


def default_state() -> Path:
    """Where records of this machine are kept unless told otherwise.

    Source: XDG Base Directory Specification, ``XDG_STATE_HOME``.
    """
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "medport"
