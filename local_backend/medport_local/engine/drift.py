"""How far a model with int8 weights is from its base: both read the same probes, and predict the next tokens.

Teacher-forced: at each place both have read the probe's own tokens, so a difference does not grow along the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport_local.engine import probes
from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.kernels import Dense, rms_norm
from medport_local.engine.kvcache import KvCache
from medport_local.engine.loading import Gemma
from medport_local.engine.vision import Vision

MAX_PERPLEXITY_RATIO = 1.02
"""Above it the int8 weights are not written unasked."""
_ROWS = 32
"""Places compared at once: of a vocabulary of 262,144 each takes a MiB in float32, several times over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The comparison on ``probes``, over all places whose next token is text."""

    probes: int
    """Version of the probes."""
    texts: int
    images: int
    """Probes that begin with a drawing."""
    tokens: int
    """Places compared."""
    mean_kl_nats: float
    """Kullback-Leibler divergence of the int8 model's next token from the base's, mean per token."""
    argmax_agreement: float
    """The share of places where both find the same token the most likely."""
    perplexity_base: float
    perplexity_int8: float
    max_logit_difference: float
    """The largest over all places and the whole vocabulary."""

    @property
    def perplexity_ratio(self) -> float:
        """int8 ÷ base: 1.01 is one percent worse."""
        return self.perplexity_int8 / self.perplexity_base

    @property
    def acceptable(self) -> bool:
        """Whether the perplexity rises by 2 % at most."""
        # What is not a number is no less than any other.
        return self.perplexity_ratio <= MAX_PERPLEXITY_RATIO


@dataclass(frozen=True, slots=True)
class Prompt:
    """A probe in the form of one model."""

    tokens: tuple[int, ...]
    block: tuple[int, int] | None
    """Where the drawing's soft tokens stand."""
    drawing: npt.NDArray[np.float32] | None
    """``[3, side, side]``"""


class Baseline:
    """What a model's last layer says about the probes; keeps the head beside it, and nothing else of the model."""

    def __init__(self, gemma: Gemma, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        self.prompts = prompts_of(gemma)
        self._hidden = list(_forward(gemma, Decoder.of(gemma), self.prompts, progress))
        text_model = gemma.model.model.language_model if gemma.images is not None else gemma.model.model
        self._norm: Tensor = 1.0 + text_model.norm.weight.float()
        self._eps: float = text_model.config.rms_norm_eps
        # A copy: a view would keep all of its shard in memory.
        self._head = Dense(gemma.model.lm_head.weight.clone())

    @torch.inference_mode()
    def compare(self, gemma: Gemma, progress: Callable[[int, int], None] = lambda done, of: None) -> Drift:
        """Read the probes with another model of the same tokenizer and shapes."""
        decoder = Decoder.of(gemma)
        tokens, same, kl, base_loss, other_loss, furthest = 0, 0, 0.0, 0.0, 0.0, 0.0
        hidden = _forward(gemma, decoder, self.prompts, progress)
        for prompt, mine, other in zip(self.prompts, self._hidden, hidden, strict=True):
            places = _places(prompt)
            for first in range(0, len(places), _ROWS):
                rows = places[first : first + _ROWS]
                wanted = torch.tensor([prompt.tokens[place + 1] for place in rows], device=mine.device)
                base = self._head(rms_norm(mine[rows], self._norm, self._eps)).float()  # [rows, vocabulary]
                int8 = decoder.logits(other[rows])
                furthest = max(furthest, (base - int8).abs().max().item())
                same += int((base.argmax(-1) == int8.argmax(-1)).sum())
                base, int8 = base.log_softmax(-1), int8.log_softmax(-1)
                kl += (base.exp() * (base - int8)).sum().item()
                base_loss -= base.gather(1, wanted[:, None]).sum().item()
                other_loss -= int8.gather(1, wanted[:, None]).sum().item()
            tokens += len(places)
        return Drift(
            probes=probes.VERSION,
            texts=len(self.prompts),
            images=sum(prompt.drawing is not None for prompt in self.prompts),
            tokens=tokens,
            mean_kl_nats=kl / tokens,
            argmax_agreement=same / tokens,
            perplexity_base=math.exp(base_loss / tokens),
            perplexity_int8=math.exp(other_loss / tokens),
            max_logit_difference=furthest,
        )


def prompts_of(gemma: Gemma) -> list[Prompt]:
    """The probes as a model reads them: the texts, and with a drawing in front the captions if it takes images."""
    text = gemma.text
    found = [Prompt(tuple(text.encode(text.bos + each)), None, None) for each in probes.TEXTS]
    if gemma.images is None or gemma.image_token_id is None:
        return found
    for caption, drawing in zip(probes.CAPTIONS, probes.drawings(), strict=True):
        tokens = text.encode(text.bos + text.image_sequence(gemma.image_tokens) + caption)
        first = tokens.index(gemma.image_token_id)
        block = (first, first + gemma.image_tokens)
        found.append(Prompt(tuple(tokens), block, gemma.images.pixel_values(drawing)))
    return found


@torch.inference_mode()
def _forward(
    gemma: Gemma, decoder: Decoder, prompts: list[Prompt], progress: Callable[[int, int], None]
) -> Iterator[Tensor]:
    """Of each prompt the hidden states after the last layer, ``[tokens, hidden]``."""
    for done, prompt in enumerate(prompts):
        progress(done, len(prompts))
        count = len(prompt.tokens)
        cache = KvCache(
            decoder.shape,
            slots=1,
            tokens=count,
            window=min(decoder.shape.window, count),
            dtype=decoder.dtype,
            device=decoder.device,
        )
        ids = torch.tensor(prompt.tokens, device=decoder.device)
        if prompt.block is None or prompt.drawing is None:
            x, blocks = decoder.embed(ids), []
        else:
            start, end = prompt.block
            ids[start:end] = 0  # the soft token's id may lie beyond the embedding's rows
            x, blocks = decoder.embed(ids), [prompt.block]
            vision = Vision(gemma.model.model)
            features = vision.advance(vision.begin(prompt.drawing), math.inf)
            assert features is not None
            x[start:end] = features
        attend = cache.chunk(Lease(slot=0, start=0, tokens=count), 0, count, blocks)
        yield decoder.forward(x, torch.arange(count, device=decoder.device), attend)
    progress(len(prompts), len(prompts))


def _places(prompt: Prompt) -> list[int]:
    """The positions after which a token of text comes; what follows inside a drawing is not the model's to say."""
    start, end = prompt.block or (0, 0)
    return [place for place in range(len(prompt.tokens) - 1) if not start <= place + 1 < end]
