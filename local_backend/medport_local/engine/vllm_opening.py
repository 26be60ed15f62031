"""vLLM for a snapshot, if its test was passed with it on this machine."""

from __future__ import annotations

from pathlib import Path

from medport.errors import ConfigError
from medport_local.engine import vllm_gate
from medport_local.engine.engine import EngineLimits
from medport_local.engine.loading import Gemma
from medport_local.engine.scoring import Scorer
from medport_local.engine.vllm_engine import VllmEngine
from medport_local.engine.vllm_gate import GateReport, Place
from medport_local.engine.vllm_library import Library
from medport_local.engine.vllm_options import VllmDtype
from medport_local.snapshot import Snapshot


def open_vllm(
    gemma: Gemma,
    snapshot: Snapshot,
    *,
    state: Path,
    limits: EngineLimits | None = None,
    dtype: VllmDtype = "bfloat16",
) -> VllmEngine:
    """The engine, ready to serve.

    Args:
        gemma: as for ``VllmEngine``.
        state: the operator's directory of records, which ``verify_vllm`` writes.

    Raises:
        ConfigError: there is no passing record, vLLM is not installed, the weights are int8, or it cannot load
            the model.
        VerificationError: a file changed while vLLM was loading it.
    """
    limits = limits or EngineLimits()
    check_weights(snapshot)
    vllm_gate.require(snapshot, state, place_of(limits, dtype))
    return VllmEngine(gemma, snapshot, limits=limits, dtype=dtype)


def verify_vllm(
    gemma: Gemma,
    snapshot: Snapshot,
    *,
    state: Path,
    limits: EngineLimits | None = None,
    dtype: VllmDtype = "bfloat16",
) -> GateReport:
    """Test vLLM with a snapshot and keep the record, whether it passes or not. Call it outside of an event loop.

    Args:
        gemma: the whole model, loaded in ``dtype``: the reference. It needs memory beside vLLM's.
        state: where the record goes.

    Raises:
        ConfigError: vLLM is not installed, or cannot load the model.
        VerificationError: a file changed while vLLM was loading it.
    """
    limits = limits or EngineLimits()
    check_weights(snapshot)
    verify = vllm_gate.verify_images if snapshot.takes_images else vllm_gate.verify_text
    engine = VllmEngine(gemma, snapshot, limits=limits, dtype=dtype)
    try:
        report = verify(engine, Scorer(gemma), snapshot, place_of(limits, dtype))
    finally:
        engine.close()
    vllm_gate.write_record(state, snapshot, report)
    return report


def check_weights(snapshot: Snapshot) -> None:
    """Refuse weights in a form that vLLM would take for something else.

    Raises:
        ConfigError: they are int8 as ``quantise`` writes them.
    """
    if snapshot.int8:
        raise ConfigError(
            "vLLM cannot read medport's int8 weights",
            field="engine",
            remedy="serve them with --engine torch, or give vLLM the snapshot that they were made from",
        )


def place_of(limits: EngineLimits, dtype: VllmDtype) -> Place:
    """Where vLLM would run on this machine, and how.

    Raises:
        ConfigError: vLLM is not installed, or does not fit what is.
    """
    library = Library()
    return Place(
        version=library.version,
        device=library.device,
        dtype=dtype,
        eager=library.eager,
        prefix_cache=limits.reuse_bytes > 0,
    )
