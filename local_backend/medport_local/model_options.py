"""How models are loaded and computed, as whoever starts a server says it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from medport.errors import ConfigError
from medport_local.engine.adapter_names import check_name
from medport_local.engine.protocol import DtypeRule

if TYPE_CHECKING:
    from medport_local.engine.sealed import SealedWeights
    from medport_local.engine.weights import ReadShard

EngineName = Literal["torch", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How models are loaded and computed.

    Raises:
        ConfigError: a name is not known, or options do not go together.
    """

    device: str | None = None
    """As ``engine.devices.choose`` takes it; vLLM chooses its own."""
    dtype: DtypeRule = "auto"
    """MedGemma's. ``auto`` is bfloat16, and float32 for a model of less than 200 million parameters."""
    embed_dtype: DtypeRule = "auto"
    """MedSigLIP's. ``auto`` measures whether bfloat16 gives the same vectors sooner, and takes float32 if not."""
    engine: EngineName = "torch"
    """Of text generation."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """LoRA adapters for MedGemma: directories by the names that callers ask for."""
    engine_state: Path | None = None
    """The directory of the records that ``medport engine verify`` writes; vLLM needs one."""
    sealed: SealedWeights | None = None
    """Keeps the weights that were verified for the next model of the same snapshot in this process; torch's only.
    By default every load reads and hashes them again."""

    def __post_init__(self) -> None:
        for name, value in (("dtype", self.dtype), ("embed-dtype", self.embed_dtype)):
            if value not in get_args(DtypeRule):
                raise ConfigError("is not known", field=name, remedy=f"give {', '.join(get_args(DtypeRule))}")
        if self.engine not in get_args(EngineName):
            raise ConfigError("is not known", field="engine", remedy=f"give {' or '.join(get_args(EngineName))}")
        for name in self.adapters:
            check_name(name)
        if self.engine == "vllm" and self.adapters:
            raise ConfigError("vLLM serves no adapters here", field="adapter", remedy="leave out --engine vllm")
        if self.engine == "vllm" and self.engine_state is None:
            raise ConfigError("vLLM needs its records", field="engine-state", remedy="give --engine-state DIR")

    @property
    def read(self) -> ReadShard:
        """What reads the weights."""
        if self.sealed is not None:
            return self.sealed.read
        from medport_local.engine.weights import read_shard

        return read_shard
