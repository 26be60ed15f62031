"""Decode steps as CUDA graphs: recorded once for a number of rows, then replayed with one launch.

A step of a 4B model is over two thousand launches in plain torch, and the card waits for most of them. Rows are
rounded up to a power of two, so a few recordings serve all batches. They share one pool of memory: only one runs
at a time.
``Runner`` takes the plain step where there is no recording: with adapters, and where recording failed.

Source: PyTorch, "CUDA graphs" (docs.pytorch.org, notes/cuda.html).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medport_local.engine import fused
from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.kvcache import KvCache
from medport_local.engine.static_step import Inputs, StaticStep, bucket, read_tokens

logger = logging.getLogger(__name__)

_WARM_UPS = 2
"""Runs before recording: libraries allocate and choose in the first ones."""


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    logits: Tensor


class Graphs:
    """The recordings of one model on one card.

    Args:
        most_rows: sequences in a step at most.
    """

    def __init__(self, decoder: Decoder, cache: KvCache, *, most_rows: int) -> None:
        assert decoder.device.type == "cuda"
        self._decoder, self._cache = decoder, cache
        self._most_rows = bucket(most_rows)
        self._inputs: dict[int, Inputs] = {}
        # None: recording failed, and is not tried again.
        self._recordings: dict[tuple[int, int], _Recording | None] = {}
        self._fused = fused.usable(decoder.device)
        self._pool = torch.cuda.graph_pool_handle()
        self.nbytes = 0
        """Of device memory that recordings took."""

    @property
    def fused(self) -> bool:
        """Whether the step is that of ``fused``, and not torch's operators."""
        return self._fused

    def warm(self) -> None:
        """Record what any context can use, while no sequence owns memory: its first places are written."""
        rows = self._most_rows
        # The largest first: what comes later fits into the memory that it took.
        while rows:
            self._recording(rows, 0, [0], [0], [Lease(0, 0, 1)])
            rows //= 2

    def run(self, tokens: Sequence[int], positions: Sequence[int], leases: Sequence[Lease]) -> Tensor | None:
        """One step, in any order of rows.

        Returns:
            float32 ``[rows, vocabulary]``; ``None`` if such a step cannot be recorded.
        """
        rows = bucket(len(tokens))
        if rows > self._most_rows:
            return None
        recording = self._recording(rows, read_tokens(positions), tokens, positions, leases)
        if recording is None:
            return None
        self._inputs[rows].fill(tokens, positions, leases)
        recording.graph.replay()
        # The next replay writes where this one's logits are.
        return recording.logits[: len(tokens)].clone()

    def _recording(
        self, rows: int, tokens: int, ids: Sequence[int], positions: Sequence[int], leases: Sequence[Lease]
    ) -> _Recording | None:
        key = (rows, 0 if self._fused else tokens)
        if key not in self._recordings:
            inputs = self._inputs.setdefault(rows, Inputs(rows, self._decoder.device))
            inputs.fill(ids, positions, leases)
            try:
                self._recordings[key] = self._record(self._step(inputs, tokens))
            except Exception as fault:
                # The type only, as everywhere where inputs are about.
                logger.warning("a decode step of %d rows was not recorded: %s", rows, type(fault).__name__)
                torch.cuda.synchronize(self._decoder.device)
                if self._fused:
                    self._fused = False
                    return self._recording(rows, tokens, ids, positions, leases)
                self._recordings[key] = None
        return self._recordings[key]

    def _step(self, inputs: Inputs, tokens: int) -> Callable[[], Tensor]:
        if self._fused:
            return fused.FusedStep(self._decoder, self._cache, inputs)
        return StaticStep(self._decoder, self._cache, inputs, max(tokens, read_tokens([0])))

    def _record(self, step: Callable[[], Tensor]) -> _Recording:
        device = self._decoder.device
        before = torch.cuda.memory_reserved(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # An embedder's thread may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()
        self.nbytes += max(0, torch.cuda.memory_reserved(device) - before)
        return _Recording(graph, logits)
