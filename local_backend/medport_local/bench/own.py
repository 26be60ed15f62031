"""medport's own engine, as one of the engines that are measured: ``python -m medport_local.bench.own OPTIONS``.

It does all that ``worker`` asks of an engine, and two things that the others are not asked for: a second question
about the same image, and answers that are being written while a long prompt comes.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medport_local.bench.template import with_template
from medport_local.bench.worker import answer_lines, draw_from, private_stdout
from medport_local.engine.embedder import Embedder
from medport_local.engine.engine import EngineLimits, TorchEngine
from medport_local.engine.loading import load_gemma, load_siglip, use_one_thread
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.engine.vision import Vision
from medport_local.snapshot import open_snapshot

PACKAGES: tuple[str, ...] = ("medport", "torch", "transformers")

_CHUNK = 16
"""No chunk of a prompt is smaller, but for its last."""

Draw = Callable[[list[int], int], list[list[int]]]
PixelValues = npt.NDArray[np.float32]


class TextEngine:
    """MedGemma.

    Args:
        options: ``path``, ``dtype``, ``device``, ``running``, ``reuse_bytes`` and ``stall_ms``.
        draw: makes prompts.
    """

    packages = PACKAGES

    def __init__(self, options: Mapping[str, Any], draw: Draw) -> None:
        self._options = options
        self._draw = draw

    def load(self) -> dict[str, Any]:
        """As ``worker.Rival``; says also in which dtype, and how much memory is declared for keys and values."""
        options = self._options
        with with_template(Path(options["path"])) as folder:
            snapshot = open_snapshot(folder, defer_weights=True)
            gemma = load_gemma(snapshot, device=options["device"], dtype=options["dtype"])
        limits = EngineLimits(
            max_running=options["running"],
            max_queue=1024,
            reuse_bytes=options["reuse_bytes"],
            stall_ms=options["stall_ms"],
            max_wait_s=math.inf,
        )
        self._engine = TorchEngine(gemma, snapshot, limits=limits)
        if gemma.small:
            use_one_thread()
        self._asyncio = asyncio.Runner()
        can = ["memory", "decode", "prefill", "serve", "stall"]
        self._vision: Vision | None = None
        if gemma.images is not None:
            self._vision = Vision(gemma.model.model)
            self._side = gemma.images.side_px
            self._image_ids = gemma.text.encode(gemma.text.image_sequence(1))
            soft = gemma.image_token_id
            assert soft is not None
            place = self._image_ids.index(soft)
            self._image_ids[place : place + 1] = [soft] * gemma.image_tokens
            can += ["encode_images", "second_question"]
        return {
            "can": can,
            "threads": 1 if gemma.small else torch.get_num_threads(),
            "dtype": str(gemma.model.dtype).removeprefix("torch."),
            "kv_bytes": self._engine.footprint.kv_bytes,
        }

    def decode(self, batch: int, prompt: int, tokens: int, seed: int) -> list[float]:
        """As ``worker.TextRival``."""
        # Those that came first write on while the others are still prefilled, chunk by chunk.
        room = tokens + 2 + batch * math.ceil(prompt / _CHUNK)
        return self._asyncio.run(self._steps(self._draw([prompt] * batch, seed), tokens, room))

    def prefill(self, length: int, seed: int) -> float:
        """As ``worker.TextRival``."""
        (ids,) = self._draw([length], seed)
        return self._asyncio.run(self._first_token(ids))

    def serve(
        self, arrivals: list[float], prompts: list[int], answers: list[int], seed: int
    ) -> dict[str, list[float]]:
        """As ``serve`` of the rival ``transformers``, by continuous batching."""
        return self._asyncio.run(self._serve(arrivals, self._draw(prompts, seed), answers))

    def encode_images(self, count: int, seed: int) -> float:
        """Seconds of ``count`` images through tower and projector, one after another."""
        assert self._vision is not None
        images = [_image(self._side, seed + i) for i in range(count)]
        began = time.perf_counter()
        with torch.inference_mode():
            for pixels in images:
                features = self._vision.advance(self._vision.begin(pixels), math.inf)
                assert features is not None
                features.sum().item()  # waits for a GPU
        return time.perf_counter() - began

    def second_question(self, question: int, seed: int) -> dict[str, float]:
        """Seconds to the first token of two different questions of ``question`` tokens about one image."""
        pixels = _image(self._side, seed)
        first, second = (
            self._asyncio.run(self._first_token([*self._image_ids, *ids], (pixels,)))
            for ids in self._draw([question, question], seed)
        )
        return {"first": first, "second": second}

    def stall(self, streams: int, prompt: int, seed: int) -> dict[str, list[float]]:
        """Seconds between the tokens of ``streams`` answers: alone, and while a prompt comes.

        Args:
            prompt: its length in tokens.
        """
        return self._asyncio.run(self._stall(streams, prompt, seed))

    def close(self) -> None:
        """As ``worker.Rival``."""
        self._engine.close()
        self._asyncio.close()

    async def _first_token(self, ids: Sequence[int], images: tuple[PixelValues, ...] = ()) -> float:
        began = time.perf_counter()
        async for _ in self._engine.submit(_request(ids, 1, images)):
            pass
        return time.perf_counter() - began

    async def _steps(self, prompts: list[list[int]], tokens: int, room: int) -> list[float]:
        streams = _Streams(self._engine, prompts, room)
        await streams.begun.wait()
        await streams.advance(tokens + 1)
        await streams.leave()
        return streams.gaps(streams.mark)[:tokens]

    async def _serve(
        self, arrivals: list[float], prompts: list[list[int]], answers: list[int]
    ) -> dict[str, list[float]]:
        began = time.perf_counter()

        async def one(i: int) -> tuple[float, float]:
            await asyncio.sleep(max(0.0, arrivals[i] - (time.perf_counter() - began)))
            first = 0.0
            async for _ in self._engine.submit(_request(prompts[i], answers[i])):
                first = first or time.perf_counter() - began
            return first, time.perf_counter() - began

        found = await asyncio.gather(*(one(i) for i in range(len(arrivals))))
        return {"first": [first for first, _ in found], "done": [done for _, done in found]}

    async def _stall(self, count: int, prompt: int, seed: int) -> dict[str, list[float]]:
        *short, long = self._draw([32] * count + [prompt], seed)
        alone = 32
        room = alone + 4 + 2 * count * math.ceil(32 / _CHUNK) + 2 * math.ceil(prompt / _CHUNK)
        streams = _Streams(self._engine, short, room)
        await streams.begun.wait()
        await streams.advance(alone)
        before = [len(stamps) for stamps in streams.stamps]
        took = await self._first_token(long)
        await streams.advance(1)
        await streams.leave()
        calm, held = [], []
        for stamps, start, middle in zip(streams.stamps, streams.mark, before, strict=True):
            calm += _differences(stamps[start:middle])
            held += _differences(stamps[middle - 1 :])
        return {"alone": calm, "during": held, "prefill": [took]}


class _Streams:
    """Answers that are written side by side, and when each token of them came.

    Args:
        prompts: of the answers.
        room: tokens that each may have; whoever runs out of them ends the measurement with an error.
    """

    def __init__(self, engine: TorchEngine, prompts: list[list[int]], room: int) -> None:
        self._engine = engine
        self.stamps: list[list[float]] = [[] for _ in prompts]
        self.mark: list[int] = []
        """How many tokens each had when the last one had begun."""
        self.begun = asyncio.Event()
        self._more = asyncio.Event()
        self._ended = False
        handles = [engine.submit(_request(ids, room)) for ids in prompts]
        self._tasks = [asyncio.create_task(self._follow(i, handle)) for i, handle in enumerate(handles)]

    async def advance(self, steps: int) -> None:
        """Wait until the first answer has so many tokens more."""
        goal = len(self.stamps[0]) + steps
        while len(self.stamps[0]) < goal:
            assert not self._ended, "an answer ended before it was measured"
            self._more.clear()
            await self._more.wait()

    async def leave(self) -> None:
        """Drop the answers, and wait until the engine has."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._engine.stats().running:
            await asyncio.sleep(0.001)

    def gaps(self, mark: list[int]) -> list[float]:
        """Seconds of the steps since all had begun, by the first answer."""
        return _differences(self.stamps[0][mark[0] :])

    async def _follow(self, i: int, handle: Any) -> None:
        try:
            async for _ in handle:
                self.stamps[i].append(time.perf_counter())
                if not self.mark and all(self.stamps):
                    self.mark = [len(stamps) for stamps in self.stamps]
                    self.begun.set()
                self._more.set()
        finally:
            self._ended = True
            self.begun.set()
            self._more.set()


class ImageEmbedder:
    """MedSigLIP. Options: ``path``, ``dtype`` and ``device``."""

    packages = PACKAGES

    def __init__(self, options: Mapping[str, Any], draw: Draw) -> None:
        self._options = options

    def load(self) -> dict[str, Any]:
        """As ``worker.Rival``; says also in which dtype."""
        snapshot = open_snapshot(self._options["path"], defer_weights=True)
        siglip = load_siglip(snapshot, device=self._options["device"], dtype=self._options["dtype"])
        dtype, small = str(siglip.model.dtype).removeprefix("torch."), siglip.small
        self._embedder = Embedder(siglip, dtype=self._options["dtype"])
        if self._embedder.agreement is not None:
            dtype = self._embedder.agreement.dtype
        self._asyncio = asyncio.Runner()
        threads = 1 if small else torch.get_num_threads()
        return {"can": ["memory", "embed_images"], "threads": threads, "dtype": dtype}

    def embed_images(self, count: int, seed: int) -> float:
        """Seconds of ``count`` images given at once."""
        images = [_image(self._embedder.images.side_px, seed + i) for i in range(count)]
        began = time.perf_counter()
        self._asyncio.run(self._embedder.embed_images(images))
        return time.perf_counter() - began

    def close(self) -> None:
        """As ``worker.Rival``."""
        self._embedder.close()
        self._asyncio.close()


def _request(ids: Sequence[int], tokens: int, images: tuple[PixelValues, ...] = ()) -> GenerationRequest:
    return GenerationRequest(
        tokens=tuple(ids), images=images, sampling=Sampling(max_tokens=tokens, ignore_eos=True)
    )


def _image(side: int, seed: int) -> PixelValues:
    return np.random.default_rng(seed).uniform(-1, 1, (3, side, side)).astype(np.float32)


def _differences(stamps: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(stamps)]


def main() -> None:
    """Answer on stdin and stdout."""
    options = json.loads(sys.argv[1])
    out = private_stdout()
    draw = draw_from(options["low"], options["high"])
    engine = ImageEmbedder(options, draw) if options["family"] == "medsiglip" else TextEngine(options, draw)
    answer_lines(engine, sys.stdin, out)


if __name__ == "__main__":
    main()
