"""How likely transformers' own forward finds an answer that another engine gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medport_local.engine.loading import Gemma
from medport_local.engine.reference import Reference
from medport_local.engine.sequence import GenerationRequest
from medport_local.engine.vllm_gate import Score

_NO_TOKEN = -1


class Scorer:
    """Scores answers on a loaded model: ``vllm_gate.Judge``."""

    def __init__(self, gemma: Gemma) -> None:
        self._right = gemma
        # No token is an image's: then the model masks them as it masks text.
        self._blind = replace(gemma, image_token_id=_NO_TOKEN)

    def __call__(self, request: GenerationRequest, tokens: Sequence[int], *, blind: bool = False) -> list[Score]:
        """One score a token, each given the prompt and the tokens before it."""
        reference = Reference(self._blind if blind else self._right, request)
        scores = []
        for i, token in enumerate(tokens):
            logits = reference.prefill() if i == 0 else reference.decode(tokens[i - 1])
            logprobs = logits.double().log_softmax(-1)
            best = int(logprobs.argmax())
            scores.append(Score(float(logprobs[token]), best, float(logprobs[best])))
        return scores
