"""transformers' own ``generate``, as one of the engines that are measured.

Loaded by ``worker``, in an interpreter that need not have medport: nothing of it is imported here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

Draw = Callable[[list[int], int], list[list[int]]]
"""Lengths and a seed → prompts of random tokens."""


class Engine:
    """``generate`` of transformers, greedy, dynamic cache: one batch at a time, padded on the left.

    Args:
        options: ``path``, ``dtype``, ``device`` and ``threads``.
        draw: makes prompts.
    """

    packages = ("torch", "transformers")

    def __init__(self, options: Mapping[str, Any], draw: Draw) -> None:
        self._options = options
        self._draw = draw

    def load(self) -> dict[str, Any]:
        """As ``worker.Rival``."""
        torch: Any = import_module("torch")
        transformers: Any = import_module("transformers")
        torch.set_num_threads(self._options["threads"])
        path = Path(self._options["path"])
        config = json.loads((path / "config.json").read_text())
        known = {
            "gemma3": "Gemma3ForConditionalGeneration",
            "gemma3_text": "Gemma3ForCausalLM",
            "siglip": "SiglipModel",
        }
        name = known[config["model_type"]]
        self._torch, self._list, self._dtype = torch, transformers.LogitsProcessorList, self._options["dtype"]
        model = getattr(transformers, name).from_pretrained(
            path, dtype=getattr(torch, self._dtype), local_files_only=True, attn_implementation="sdpa"
        )
        self._model = model.eval().to(self._options["device"])
        vision = config.get("vision_config") or {}
        self._side = int(vision.get("image_size", 0))
        can = ["memory"]
        if name == "SiglipModel":
            can += ["embed_images"]
        else:
            can += ["decode", "prefill", "serve"] + (["encode_images"] if self._side else [])
            # Answers of exactly the asked length.
            self._model.generation_config.eos_token_id = None
        return {"can": can, "threads": torch.get_num_threads()}

    def decode(self, batch: int, prompt: int, tokens: int, seed: int) -> list[float]:
        """As ``worker.TextRival``."""
        stamps = self._generate(self._draw([prompt] * batch, seed), tokens + 1)
        return [after - before for before, after in pairwise(stamps)]

    def prefill(self, length: int, seed: int) -> float:
        """As ``worker.TextRival``."""
        began = time.perf_counter()
        return self._generate(self._draw([length], seed), 1)[0] - began

    def serve(
        self, arrivals: list[float], prompts: list[int], answers: list[int], seed: int
    ) -> dict[str, list[float]]:
        """Answer requests as they arrive: whoever waits when a batch ends is the next batch.

        Args:
            arrivals: seconds from the start, ascending; ``prompts`` and ``answers`` are lengths in tokens.

        Returns:
            ``first`` and ``done``: seconds from the start to each request's first token and to its end, which is
            its batch's.
        """
        drawn = self._draw(prompts, seed)
        first: list[float] = []
        done: list[float] = []
        began = time.perf_counter()
        while len(done) < len(arrivals):
            now = time.perf_counter() - began
            due = [i for i in range(len(done), len(arrivals)) if arrivals[i] <= now]
            if not due:
                time.sleep(arrivals[len(done)] - now)
                continue
            stamps = self._generate([drawn[i] for i in due], max(answers[i] for i in due))
            first += [stamps[0] - began] * len(due)
            done += [stamps[-1] - began] * len(due)
        return {"first": first, "done": done}

    def encode_images(self, count: int, seed: int) -> float:
        """Seconds of ``count`` images through tower and projector, one after another."""
        images = self._images(count, seed).split(1)
        began = time.perf_counter()
        for image in images:
            self._features(image)
        return time.perf_counter() - began

    def embed_images(self, count: int, seed: int) -> float:
        """Seconds of ``count`` images in one batch."""
        images = self._images(count, seed)
        began = time.perf_counter()
        self._features(images)
        return time.perf_counter() - began

    def close(self) -> None:
        """As ``worker.Rival``."""
        del self._model

    def _images(self, count: int, seed: int) -> Any:
        torch = self._torch
        drawn = torch.rand(count, 3, self._side, self._side, generator=torch.Generator().manual_seed(seed))
        return (2 * drawn - 1).to(self._options["device"], getattr(torch, self._dtype))

    def _features(self, pixels: Any) -> None:
        with self._torch.inference_mode():
            found = self._model.get_image_features(pixel_values=pixels)
            # Reading a number is what waits for a GPU.
            getattr(found, "pooler_output", found).sum().item()

    def _generate(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """When the logits of each token were there."""
        torch, width = self._torch, max(map(len, prompts))
        device = self._options["device"]
        ids = torch.tensor([[0] * (width - len(each)) + each for each in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
        stamps: list[float] = []

        def stamp(ids: Any, logits: Any) -> Any:
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            stamps.append(time.perf_counter())
            return logits

        self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            logits_processor=self._list([stamp]),
        )
        assert len(stamps) == tokens
        return stamps
