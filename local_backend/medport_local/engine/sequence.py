"""One request's state on its way through the engine. Plain Python, no tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from medport.errors import MedportError

if TYPE_CHECKING:
    from medport_local.engine.grammar import Grammar

FinishReason = Literal["stop", "length"]

_GREEDY_BELOW = 1e-5
"""As in vLLM: so small a temperature would overflow and change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when to stop. The order in which the options act stands in ``sampler``.

    Serving validates what callers send; here ranges are only asserted. Names and meanings are vLLM's
    (docs.vllm.ai, ``SamplingParams``).
    """

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or less: all tokens. More than there are is all of them."""
    min_p: float = 0.0
    """0 to 1: leave out what is less likely than this share of the most likely token."""
    seed: int | None = None
    presence_penalty: float = 0.0
    """Taken once from the logit of each token that the answer holds."""
    frequency_penalty: float = 0.0
    """Taken from the logit of each token as often as the answer holds it."""
    repetition_penalty: float = 1.0
    """Above 0. Logits of tokens in prompt or answer are divided by it if positive, else multiplied."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token id and what is added to its logit; ids outside the vocabulary do nothing."""
    min_tokens: int = 0
    """So many tokens come before an end token or a stop string can end the answer."""
    ignore_eos: bool = False
    """The end token is a token like others. ``stop_token_ids``, ``stop`` and ``grammar`` still end the answer."""
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Keep the stop string, or the stop token's text, at the end of the answer."""
    stop_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True
    """Leave control tokens out of the text."""
    logprobs: int | None = None
    """``None``: none. Otherwise the chosen token's, and those of so many most likely ones."""
    grammar: Grammar | None = field(default=None, repr=False)
    """What the answer must be, from its first token on: with it a model cannot think aloud before it answers."""

    def __post_init__(self) -> None:
        assert self.max_tokens >= 1
        assert self.min_tokens >= 0
        assert self.repetition_penalty > 0
        assert 0 <= self.min_p <= 1
        assert self.logprobs is None or self.logprobs >= 0
        assert all(math.isfinite(bias) for _, bias in self.logit_bias)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without a draw."""
        return self.temperature < _GREEDY_BELOW

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens there were before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def plain(self) -> bool:
        """Whether each token is simply the most likely one, and nothing is told about it."""
        return (
            self.greedy
            and not self.penalises
            and not self.logit_bias
            and self.min_tokens == 0
            and self.grammar is None
            and self.logprobs is None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to go on from, and how."""

    tokens: tuple[int, ...] = field(repr=False)
    images: tuple[Any, ...] = field(default=(), repr=False)
    """float32 ``[3, size, size]`` each, in the order of their places in ``tokens``."""
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    """sha256 of each image, as ``reuse.image_digest`` makes it where that holds up nobody; or none of them."""
    sampling: Sampling
    tenant: str = ""
    """On whose behalf. Tenants get equal shares of a busy engine, and never each other's cached work."""
    group: str | None = None
    """Requests of one caller that share a prompt, such as its ``n`` answers: its work is done once for them."""
    adapter: str | None = None
    """Name of a LoRA adapter that was loaded beside the base; ``None`` is the base alone."""
    deadline: float | None = None
    """In ``time.monotonic()``: after it nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token and how likely it was, by the model's own logits (natural logarithm).

    The logits are those before any penalty, bias, grammar and temperature, as OpenAI's and vLLM's default is. So a
    token that a grammar forced can be a very unlikely one.
    """

    token: int
    piece: bytes = field(repr=False)
    """What the token adds to the text; empty for a control token, part of a character at times."""
    logprob: float = field(repr=False)
    top: tuple[tuple[int, bytes, float], ...] = field(default=(), repr=False)
    """Token, piece and logprob of the most likely ones, best first; the chosen one need not be among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One token's worth of progress."""

    text: str = field(default="", repr=False)
    """What became certain with this token; may be empty while a character or a stop string is incomplete."""
    tokens: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    """The token of this step, if logprobs were asked for and it did not end the answer by being an end token.

    It is told in the step that generated it, even if its text must wait. So over a whole answer the pieces can
    hold a stop string that the text leaves out.
    """
    finish_reason: FinishReason | None = None
    """Set on the last event only."""
    completion_tokens: int = 0
    """Tokens generated so far, the end token included."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A request, what was generated for it, and where its events go."""

    id: int
    request: GenerationRequest
    deliver: Callable[[Event | MedportError], None] = field(repr=False)
    """Called from the device thread; must not block."""
    queued_at: float = 0.0
    image_blocks: tuple[tuple[int, int], ...] = ()
    """Where the soft tokens of each image begin and end (one past) in the prompt. No chunk ends inside."""
    generated: list[int] = field(default_factory=list, repr=False)
    encoded: int = 0
    """Images whose features are there."""
    computed: int | None = None
    """Prompt tokens whose keys and values are there; ``None`` until the prefix cache was asked."""
    cancelled: bool = False
    plain: bool = field(init=False)
    """``Sampling.plain``, asked once instead of at each step."""

    def __post_init__(self) -> None:
        self.plain = self.request.sampling.plain

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.tokens)

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is computed, so that the sequence decodes."""
        return bool(self.generated)

    def images_before(self, end: int) -> int:
        """How many images have soft tokens before prompt position ``end``."""
        return sum(start < end for start, _ in self.image_blocks)
