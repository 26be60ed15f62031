"""``adapter_config.json`` of PEFT, read for what it does to the arithmetic. Plain Python, no tensors.

Every setting is either understood, known to do nothing to a forward pass, or off. Whatever else is on is refused
by name: an adapter that is half understood answers fluently and wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from medport_local.snapshot_file import refuse

T = TypeVar("T")

CONFIG = "adapter_config.json"

MERGE = "merge it into its base (PEFT's merge_and_unload) and serve the result as a snapshot of its own"
"""The remedy for what cannot be served beside the base."""

_UNDERSTOOD = frozenset(
    {
        *(
            "peft_type",
            "r",
            "lora_alpha",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "bias",
            "init_lora_weights",
        ),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "base_model_name_or_path"),
    }
)
_HARMLESS = frozenset(
    {
        *("task_type", "auto_mapping", "revision", "inference_mode", "peft_version", "lora_dropout"),
        # How the first weights were made; those that change the base too are refused by init_lora_weights.
        *("eva_config", "loftq_config", "corda_config", "lora_ga_config"),
        # Defaults of what is off.
        *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    }
)
# PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA and MiCA take something out of the base's weights, which ours still have.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_NAME = re.compile(r"\^?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Ranks, scales and targets, by a module's path in the base, such as ``model.layers.0.mlp.up_proj``."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | None
    """Names of modules or ends of their paths; ``None`` where an expression chooses them."""
    excluded: tuple[str, ...] | None
    """As ``targets``."""
    layers: frozenset[int] | None
    """``None``: all."""
    base: str | None

    def rank_of(self, path: str) -> int:
        """The rank of a module's pair."""
        return _first(self.ranks, path, self.r)

    def scale_of(self, path: str) -> float:
        """What a module's product of the pair is multiplied by."""
        rank = self.rank_of(path)
        return _first(self.alphas, path, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def wants(self, path: str, layer: int) -> bool | None:
        """Whether a module has a pair; ``None`` where only an expression in the file could tell.

        Source: PEFT 0.21, ``tuners_utils.check_target_module_exists``.
        """
        if self.targets is None or self.excluded is None:
            return None
        if ends_with(path, self.excluded):
            return False
        if path in self.targets:
            return True
        return ends_with(path, self.targets) and (self.layers is None or layer in self.layers)


def ends_with(path: str, names: tuple[str, ...]) -> bool:
    """Whether a module's path is one of the names, or ends with one at a dot."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def parse_config(data: bytes) -> AdapterConfig:
    """Read the configuration of a LoRA adapter from the file's content.

    Raises:
        VerificationError: it is none, or does more than LoRA; names the setting.
    """
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        refuse(CONFIG, "is not a JSON object", "fetch the adapter again")
    return _Reader(config).read()


class _Reader:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def read(self) -> AdapterConfig:
        config = self._config
        if config.get("peft_type") != "LORA":
            self._no("peft_type", "is not LORA", MERGE)
        for key in sorted(config.keys() - _UNDERSTOOD - _HARMLESS):
            if config[key]:
                self._no(key, "is set, and is not served beside a base", MERGE)
        if config.get("bias", "none") != "none":
            self._no("bias", "is not none", MERGE)
        start = config.get("init_lora_weights", True)
        if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
            self._no(
                "init_lora_weights",
                "changes the base's weights too",
                "save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
            )
        if config.get("layers_pattern") not in (None, "", [], "layers", ["layers"]):
            self._no("layers_pattern", "is not layers", MERGE)
        base = config.get("base_model_name_or_path")
        return AdapterConfig(
            r=self._rank("r", config.get("r")),
            alpha=self._alpha("lora_alpha", config.get("lora_alpha")),
            rslora=self._flag("use_rslora"),
            ranks={name: self._rank("rank_pattern", value) for name, value in self._pattern("rank_pattern")},
            alphas={name: self._alpha("alpha_pattern", value) for name, value in self._pattern("alpha_pattern")},
            targets=self._targets(),
            excluded=self._names("exclude_modules") if config.get("exclude_modules") else (),
            layers=self._layers(),
            base=base if isinstance(base, str) and base else None,
        )

    def _no(self, key: str, fault: str, remedy: str = "train or export the adapter again") -> NoReturn:
        refuse(CONFIG, f"{key:.60} {fault}", remedy)

    def _rank(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**16:
            self._no(key, "is not a positive whole number")
        return value

    def _alpha(self, key: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1e9:
            self._no(key, "is not a number of sensible size")
        return float(value)

    def _flag(self, key: str) -> bool:
        value = self._config.get(key, False)
        if value not in (True, False, None):
            self._no(key, "is neither true nor false")
        return bool(value)

    def _pattern(self, key: str) -> list[tuple[str, object]]:
        value = self._config.get(key) or {}
        if not isinstance(value, dict):
            self._no(key, "is not an object")
        for name in value:
            # PEFT takes any regular expression here. One from a file could run for ever.
            if not _NAME.match(name):
                self._no(key, "has an expression where the name of a module must stand", MERGE)
        return list(value.items())

    def _targets(self) -> tuple[str, ...] | None:
        if not self._config.get("target_modules"):
            self._no("target_modules", "is missing")
        return self._names("target_modules")

    def _names(self, key: str) -> tuple[str, ...] | None:
        value = self._config.get(key)
        if isinstance(value, str):
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            self._no(key, "is neither a list of names nor an expression")
        return tuple(value)

    def _layers(self) -> frozenset[int] | None:
        value = self._config.get("layers_to_transform")
        if value is None or value == []:
            return None
        layers = value if isinstance(value, list) else [value]
        if not all(isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 for layer in layers):
            self._no("layers_to_transform", "is not a list of layers")
        return frozenset(layers)


def _first(pattern: Mapping[str, T], path: str, default: T) -> T:
    """The value of the first name that a path ends with.

    Source: PEFT 0.21, ``utils.other.get_pattern_key``.
    """
    for name, value in pattern.items():
        if path == name[1:] if name.startswith("^") else ends_with(path, (name,)):
            return value
    return default
