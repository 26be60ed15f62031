"""The tensors of MedGemma: prompts in, next-token logits out. It alone runs the model and owns its caches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medport_local.engine.loading import Cache, Gemma, new_cache
from medport_local.engine.scheduler import Batch
from medport_local.engine.sequence import Sequence


class Runner:
    """One cache a sequence; the sequences of a batch run one after the other."""

    def __init__(self, gemma: Gemma) -> None:
        self._gemma = gemma
        self._caches: dict[int, Cache] = {}

    @property
    def held(self) -> int:
        """How many sequences hold memory."""
        return len(self._caches)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the next token, float32 ``[sequences, vocabulary]``, on the device."""
        step = self._prefill if batch.phase == "prefill" else self._decode
        return torch.stack([step(sequence) for sequence in batch.sequences])

    def release(self, sequence: Sequence) -> None:
        """Free a sequence's memory; nothing happens if it holds none."""
        self._caches.pop(sequence.id, None)

    def _prefill(self, sequence: Sequence) -> Tensor:
        gemma, request = self._gemma, sequence.request
        ids = torch.tensor([request.tokens], device=gemma.device)  # [1, tokens]
        inputs: dict[str, Tensor] = {}
        if gemma.image_token_id is not None:
            # Without them the tokens of an image do not see each other: other logits, and no error.
            inputs["token_type_ids"] = (ids == gemma.image_token_id).long()
        if request.images:
            pixels = torch.from_numpy(np.stack(request.images))  # [images, 3, size, size]
            inputs["pixel_values"] = pixels.to(gemma.device, gemma.model.dtype)
        cache = self._caches[sequence.id] = new_cache(gemma.model)
        return self._next(ids, cache, inputs)

    def _decode(self, sequence: Sequence) -> Tensor:
        ids = torch.tensor([sequence.generated[-1:]], device=self._gemma.device)  # [1, 1]
        return self._next(ids, self._caches[sequence.id], {})

    def _next(self, ids: Tensor, cache: Cache, inputs: dict[str, Tensor]) -> Tensor:
        output = self._gemma.model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True, **inputs
        )
        logits: Tensor = output.logits[0, -1].float()  # [vocabulary]
        return logits
