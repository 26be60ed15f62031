"""The plain way to an answer: transformers' own forward, one sequence after another, each with its own cache.

Slow, and right by definition: what the fast path is tested and measured against.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medport.errors import ConfigError
from medport_local.engine.loading import Gemma, new_cache
from medport_local.engine.sequence import GenerationRequest


class Reference:
    """One sequence on the model's own module.

    Raises:
        ConfigError: the weights are int8, which the module cannot multiply with.
    """

    def __init__(self, gemma: Gemma, request: GenerationRequest) -> None:
        if gemma.int8:
            raise ConfigError(
                "a snapshot of int8 weights has no plain way to an answer",
                field="snapshot",
                remedy="compare with the snapshot that it was made from",
            )
        self._gemma = gemma
        self._request = request
        self._cache = new_cache(gemma.model)

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        """Logits after the whole prompt, float32 ``[vocabulary]``."""
        gemma, request = self._gemma, self._request
        ids = torch.tensor([request.tokens], device=gemma.device)  # [1, tokens]
        inputs: dict[str, Tensor] = {}
        if gemma.image_token_id is not None:
            # Without them the tokens of an image do not see each other: other logits, and no error.
            inputs["token_type_ids"] = (ids == gemma.image_token_id).long()
        if request.images:
            pixels = torch.from_numpy(np.stack(request.images))  # [images, 3, size, size]
            inputs["pixel_values"] = pixels.to(gemma.device, gemma.model.dtype)
        return self._next(ids, inputs)

    @torch.inference_mode()
    def decode(self, token: int) -> Tensor:
        """Logits after one more token, float32 ``[vocabulary]``."""
        return self._next(torch.tensor([[token]], device=self._gemma.device), {})

    def greedy(self, count: int) -> list[int]:
        """The ``count`` most likely tokens, end tokens taken as any other."""
        tokens = [int(self.prefill().argmax())]
        while len(tokens) < count:
            tokens.append(int(self.decode(tokens[-1]).argmax()))
        return tokens

    def _next(self, ids: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        output = self._gemma.model(
            input_ids=ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
            **inputs,
        )
        logits: Tensor = output.logits[0, -1].float()
        return logits
