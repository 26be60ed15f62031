"""One sequence's tokens → its events: what becomes certain of the text, and when the answer is over. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.sequence import Event, FinishReason, Sampling, TokenLogprob


class Answer:
    """What was generated for one request so far.

    Args:
        sampling: how the answer ends, and what is told about its tokens.
        detokenizer: a fresh one, with the request's stop strings.
        eos_ids: the model's end tokens.
        room: tokens that still fit into the context.
    """

    def __init__(
        self, sampling: Sampling, detokenizer: Detokenizer, *, eos_ids: frozenset[int], room: int
    ) -> None:
        self._sampling = sampling
        self._detokenizer = detokenizer
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_ids)
        self._most = min(sampling.max_tokens, room)
        self.count = 0
        """Tokens so far, an end token included."""

    def accept(
        self,
        token: int,
        *,
        logprob: float | None = None,
        top: Sequence[tuple[int, float]] = (),
        complete: bool = False,
    ) -> Event:
        """Take the next token; gives its event, the last one with a ``finish_reason``.

        Args:
            logprob, top: the token's, and the most likely tokens with theirs, if they were asked for.
            complete: a grammar is fulfilled by this token.
        """
        self.count += 1
        detokenizer, ended = self._detokenizer, token in self._ends
        text = ""
        told: tuple[TokenLogprob, ...] = ()
        if not ended or self._sampling.include_stop:
            text = detokenizer.feed(token, armed=self.count > self._sampling.min_tokens)
            if logprob is not None:
                likely = tuple((other, detokenizer.piece(other), value) for other, value in top)
                told = (TokenLogprob(token, detokenizer.piece(token), logprob, likely),)
        finish: FinishReason | None = None
        if ended or detokenizer.stopped or complete:
            finish = "stop"
        elif self.count >= self._most:
            finish = "length"
        if finish is not None:
            text += detokenizer.flush()
            finish = "stop" if detokenizer.stopped else finish
        return Event(text=text, tokens=told, finish_reason=finish, completion_tokens=self.count)
