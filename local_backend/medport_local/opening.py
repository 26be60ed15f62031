"""A snapshot → the engine that serves it: which engine, in which dtype, with which adapters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medport_local.engine.adapters import Adapter, Target, load_adapter
from medport_local.engine.decoder import Decoder
from medport_local.engine.embedder import Embedder, EmbedderLimits
from medport_local.engine.engine import Engine, EngineLimits, TorchEngine
from medport_local.engine.loading import Gemma, load_codecs, load_gemma, load_siglip
from medport_local.model_options import EngineName as EngineName
from medport_local.model_options import ModelOptions as ModelOptions
from medport_local.snapshot import Snapshot
from medport_local.standing import Room, Standing, device_name, dtype_name, weights_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model that runs."""

    snapshot: Snapshot
    engine: Engine | Embedder
    standing: Standing


def open_model(
    snapshot: Snapshot,
    options: ModelOptions,
    *,
    engine_limits: EngineLimits | None = None,
    embedder_limits: EmbedderLimits | None = None,
) -> Opened:
    """Load a verified snapshot and start its engine. Takes as long as the weights need.

    Raises:
        ConfigError: there is no such device or adapter, vLLM may not serve the snapshot, or the memory does not
            hold one request.
        VerificationError: weights or an adapter are not what they must be.
    """
    if snapshot.family == "medsiglip":
        return _open_siglip(snapshot, options, embedder_limits)
    if options.engine == "vllm":
        return _open_vllm(snapshot, options, engine_limits or EngineLimits())
    gemma = load_gemma(snapshot, device=options.device, dtype=options.dtype, read=options.read)
    dtype = Decoder.of(gemma).dtype
    adapters = _load_adapters(gemma, dtype, snapshot, options.adapters)
    engine = TorchEngine(gemma, snapshot, limits=engine_limits, adapters=adapters)
    standing = Standing(
        model_id=snapshot.model_id,
        engine="torch",
        device=str(gemma.device),
        device_name=device_name(gemma.device),
        dtype=dtype_name(dtype),
        int8=bool(gemma.int8),
        weights_bytes=weights_bytes(gemma) + sum(each.nbytes for each in adapters.values()),
        room=Room.of(engine.footprint, engine.limits, max_context=snapshot.max_context),
        reuse_bytes=engine.limits.reuse_bytes,
        adapters={name: each.sha256 for name, each in adapters.items()},
    )
    return Opened(snapshot=snapshot, engine=engine, standing=standing)


def _open_siglip(snapshot: Snapshot, options: ModelOptions, limits: EmbedderLimits | None) -> Opened:
    # Measuring begins from the precise one.
    rule = "float32" if options.embed_dtype == "auto" else options.embed_dtype
    siglip = load_siglip(snapshot, device=options.device, dtype=rule, read=options.read)
    # The embedder may pack the weights, which are no parameters then.
    count, device = siglip.model.num_parameters(), siglip.device
    embedder = Embedder(siglip, limits=limits, dtype=options.embed_dtype)
    dtype = embedder.agreement.dtype if embedder.agreement is not None else rule
    standing = Standing(
        model_id=snapshot.model_id,
        engine="torch",
        device=str(device),
        device_name=device_name(device),
        dtype=dtype,
        weights_bytes=count * (4 if dtype == "float32" else 2),
        agreement=embedder.agreement,
    )
    return Opened(snapshot=snapshot, engine=embedder, standing=standing)


def _open_vllm(snapshot: Snapshot, options: ModelOptions, limits: EngineLimits) -> Opened:
    from medport_local.engine import vllm_gate
    from medport_local.engine.vllm_opening import check_weights, open_vllm, place_of

    state = options.engine_state
    assert state is not None
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if options.dtype == "auto" else options.dtype
    # Before anything is loaded: a refusal should not cost minutes.
    check_weights(snapshot)
    place = place_of(limits, dtype)
    vllm_gate.require(snapshot, state, place)
    engine = open_vllm(load_codecs(snapshot), snapshot, state=state, limits=limits, dtype=dtype)
    kind, _, name = place.device.partition(" ")
    standing = Standing(
        model_id=snapshot.model_id,
        engine="vllm",
        device=kind,
        device_name=name,
        dtype=dtype,
        weights_bytes=sum(snapshot.files[shard].size_bytes for shard in snapshot.shards),
        reuse_bytes=limits.reuse_bytes,
    )
    return Opened(snapshot=snapshot, engine=engine, standing=standing)


def _load_adapters(
    gemma: Gemma, dtype: torch.dtype, snapshot: Snapshot, directories: Mapping[str, Path]
) -> dict[str, Adapter]:
    if not directories:
        return {}
    target = Target.of(
        gemma.model.config.get_text_config(),
        dtype=dtype,
        device=gemma.device,
        model_id=snapshot.model_id,
    )
    loaded = {name: load_adapter(folder, target, name=name) for name, folder in directories.items()}
    for name, adapter in loaded.items():
        if adapter.fits_base is False:
            logger.warning("adapter %s says that it was trained on another model than %s", name, snapshot.model_id)
        logger.info("adapter %s is ready: sha256 %.12s", name, adapter.sha256)
    return loaded
