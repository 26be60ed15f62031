"""llama.cpp, as one of the engines that are measured.

Loaded by ``worker``, in an interpreter that need not have medport: nothing of it is imported here.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

Draw = Callable[[list[int], int], list[list[int]]]
"""Lengths and a seed → prompts of random tokens."""


class Engine:
    """llama.cpp through its C interface, which llama-cpp-python ships.

    Args:
        options: ``path`` of a GGUF file, ``threads``, ``context`` (the longest sequence), and ``requantise``:
            where to write the weights as BF16 first, unless they are there, and what to load instead.
        draw: makes prompts.
    """

    packages = ("llama-cpp-python",)

    def __init__(self, options: Mapping[str, Any], draw: Draw) -> None:
        self._options = options
        self._draw = draw

    def load(self) -> dict[str, Any]:
        """As ``worker.Rival``."""
        cpp: Any = import_module("llama_cpp")
        numpy: Any = import_module("numpy")
        self._cpp, self._numpy = cpp, numpy
        cpp.llama_backend_init()
        path = str(self._options["path"])
        if target := self._options.get("requantise"):
            path = self._bf16(path, target)
        settings = cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = cpp.llama_model_load_from_file(path.encode(), settings)
        if not self._model:
            raise ValueError("llama.cpp does not load this file")
        wanted = cpp.llama_context_default_params()
        rows, longest = 16, int(self._options["context"])
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_seq_max = rows * longest, longest, 512, rows
        wanted.n_threads = wanted.n_threads_batch = self._options["threads"]
        self._context = cpp.llama_init_from_model(self._model, wanted)
        self._size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))
        self._batch = cpp.llama_batch_init(longest, 0, rows)
        can = ["memory", "decode", "prefill"]
        return {"can": can, "threads": self._options["threads"]}

    def decode(self, batch: int, prompt: int, tokens: int, seed: int) -> list[float]:
        """As ``worker.TextRival``."""
        self._clear()
        last = [self._prompt(ids, row) for row, ids in enumerate(self._draw([prompt] * batch, seed))]
        seconds = []
        for step in range(tokens):
            began = time.perf_counter()
            self._run([(token, prompt + step, row, True) for row, token in enumerate(last)])
            last = [self._best(row) for row in range(batch)]
            seconds.append(time.perf_counter() - began)
        return seconds

    def prefill(self, length: int, seed: int) -> float:
        """As ``worker.TextRival``."""
        self._clear()
        (ids,) = self._draw([length], seed)
        began = time.perf_counter()
        self._prompt(ids, 0)
        return time.perf_counter() - began

    def close(self) -> None:
        """As ``worker.Rival``."""
        self._cpp.llama_free(self._context)
        self._cpp.llama_model_free(self._model)

    def _bf16(self, path: str, target: str) -> str:
        if not Path(target).exists():
            cpp, part = self._cpp, target + ".part"
            settings = cpp.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize = cpp.LLAMA_FTYPE_MOSTLY_BF16, True
            if cpp.llama_model_quantize(path.encode(), part.encode(), ctypes.byref(settings)):
                raise ValueError("llama.cpp does not convert this file")
            Path(part).rename(target)
        return target

    def _clear(self) -> None:
        self._cpp.llama_memory_clear(self._cpp.llama_get_memory(self._context), True)

    def _prompt(self, ids: list[int], row: int) -> int:
        self._run([(token, place, row, place == len(ids) - 1) for place, token in enumerate(ids)])
        return self._best(len(ids) - 1)

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, place, row, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, place, 1, wanted
            batch.seq_id[i][0] = row
        if self._cpp.llama_decode(self._context, batch):
            raise ValueError("llama_decode failed")

    def _best(self, row: int) -> int:
        logits = self._cpp.llama_get_logits_ith(self._context, row)
        return int(self._numpy.ctypeslib.as_array(logits, (self._size,)).argmax())
