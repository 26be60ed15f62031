"""The tensors of MedGemma: steps in, next-token logits out. It alone runs the model and owns its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from medport_local.engine import devices, fused
from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.graphs import Graphs
from medport_local.engine.kvcache import Kept, KvCache
from medport_local.engine.loading import Gemma
from medport_local.engine.lora import Adapter, Side, of_rows
from medport_local.engine.reuse import Budget, ByteLru, Key, Prefixes, Scope, image_digest, prompt_key
from medport_local.engine.scheduler import Batch
from medport_local.engine.sequence import Sequence
from medport_local.engine.vision import Unfinished, Vision

MAX_IDLE_S = 900.0
"""What was kept of patients' requests goes when nobody asked for it this long."""
_GROUP = "\0"
"""Begins the name of a group's scope: no tenant's name does."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What is kept of a prompt's beginning."""

    kept: Kept
    last: Tensor | None
    """``[1, hidden]`` after the last token, where that is the prompt's end."""

    @property
    def nbytes(self) -> int:
        return self.kept.nbytes + (self.last.nbytes if self.last is not None else 0)


class _State:
    """What one running sequence has beside its keys and values."""

    def __init__(self, sequence: Sequence) -> None:
        self.features: dict[int, Tensor] = {}
        """Of the images whose tokens are still to be computed: ``[soft tokens, hidden]``."""
        self.unfinished: Unfinished | None = None
        self.last: Tensor | None = None
        """The hidden state of the prompt's last token, if all of it came from a prefix."""
        self.digests: list[bytes] = list(sequence.request.digests)
        self.key: Key | None = None
        self._images = sequence.request.images

    def digest(self, number: int) -> bytes:
        while len(self.digests) <= number:
            self.digests.append(image_digest(self._images[len(self.digests)]))
        return self.digests[number]


class Runner:
    """Runs steps on the device.

    Args:
        gemma: the model.
        decoder: over its parameters.
        cache: where keys and values are.
        lease: says which part of it a sequence owns.
        shared_bytes: for image features and prompt prefixes that several sequences use.
        reuses: whether they may outlive their requests; if not, the sequences of one request share them.
        stall_s: how long the vision tower works at once.
        adapters: by name.
    """

    def __init__(
        self,
        gemma: Gemma,
        decoder: Decoder,
        cache: KvCache,
        lease: Callable[[Sequence], Lease],
        *,
        shared_bytes: int = 0,
        reuses: bool = False,
        stall_s: float = 0.2,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._lease = lease
        self._stall_s = stall_s
        self._adapters = dict(adapters or {})
        self._vision = Vision(gemma.model.model) if gemma.images is not None else None
        self._states: dict[int, _State] = {}
        self._reuses = reuses
        self._budget = Budget(shared_bytes)
        self._features: ByteLru[tuple[str, bytes], Tensor] = ByteLru(self._budget, max_idle_s=MAX_IDLE_S)
        self._prefixes: Prefixes[_Beginning] = Prefixes(self._budget, window=cache.window, max_idle_s=MAX_IDLE_S)
        self._graphs = Graphs(decoder, cache, most_rows=cache.slots) if decoder.device.type == "cuda" else None
        self.image_hits = 0
        self.image_misses = 0

    @torch.inference_mode()
    def warm(self) -> None:
        """Prepare the device for decode steps, before any sequence owns memory."""
        if self._graphs is not None:
            self._graphs.warm()

    @property
    def held(self) -> int:
        """How many sequences hold memory beside the caches."""
        return len(self._states)

    @property
    def cache_hits(self) -> int:
        """Prompt tokens that were found in a prefix cache."""
        return self._prefixes.hits

    @property
    def cache_misses(self) -> int:
        """Prompt tokens that were looked for and not found."""
        return self._prefixes.misses

    @property
    def reuse_bytes_used(self) -> int:
        """Bytes that the caches hold."""
        return self._budget.used_bytes

    @property
    def keeps(self) -> bool:
        """Whether anything is kept that will be too old one day."""
        return self._budget.used_bytes > 0

    def expire(self) -> None:
        """Forget what nobody asked for lately."""
        self._prefixes.expire()
        self._features.expire()

    @torch.inference_mode()
    def restore(self, sequence: Sequence) -> int:
        """Begin a sequence with what the caches have of its prompt; says how many tokens that was."""
        state = self._states[sequence.id] = _State(sequence)
        scope = self._scope(sequence)
        if scope is None:
            return 0
        digests = [state.digest(i) for i in range(len(sequence.request.images))]
        state.key = prompt_key(sequence.request.tokens, sequence.image_blocks, digests)
        found = self._prefixes.find(scope, state.key, sequence.image_blocks)
        if found is None:
            return 0
        tokens, beginning = found
        self._cache.restore(self._lease(sequence), beginning.kept, tokens)
        if tokens == sequence.prompt_tokens:
            state.last = beginning.last
        return tokens

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor | None:
        """One step. A card may still be at work on the logits; a step without any is over when this returns, so
        that whoever plans the next ones can time it.

        Returns:
            float32 ``[sequences, vocabulary]`` on the device for a decode step and for the chunk that ends a
            prompt; ``None`` for other chunks and for images.
        """
        device = self._decoder.device
        with devices.attention(device):
            logits = self._step(batch)
        if logits is None:
            devices.wait(device)
        return logits

    def _step(self, batch: Batch) -> Tensor | None:
        if batch.phase == "decode":
            return self._decode(batch.sequences)
        (sequence,) = batch.sequences
        if batch.phase == "encode":
            self._encode(sequence)
            return None
        return self._prefill(sequence, batch.start, batch.end)

    @torch.inference_mode()
    def release(self, sequence: Sequence) -> None:
        """Free what a sequence holds; nothing happens if that is nothing. Its memory is its own until then."""
        self._states.pop(sequence.id, None)

    @torch.inference_mode()
    def scrub(self, sequence: Sequence) -> None:
        """Clear what a failed sequence wrote: what hides in a ring must not reach whoever gets it next."""
        self._cache.scrub(self._lease(sequence))

    def forget_group(self, group: str) -> None:
        """Drop what the requests of a group shared: the last of them is over."""
        self._prefixes.drop(_GROUP + group)

    def _scope(self, sequence: Sequence) -> Scope | None:
        """Among whose beginnings a sequence may look; ``None``: nobody's."""
        request = sequence.request
        if self._reuses:
            return request.tenant, request.adapter
        return None if request.group is None else (_GROUP + request.group, request.adapter)

    def _decode(self, sequences: Rows[Sequence]) -> Tensor:
        # Rows in the order of their slots, so that neighbours are read as one view.
        order = sorted(range(len(sequences)), key=lambda i: self._lease(sequences[i]).slot)
        rows = [sequences[i] for i in order]
        positions = [each.prompt_tokens + len(each.generated) - 1 for each in rows]
        device, side = self._decoder.device, self._side(rows)
        if self._graphs is not None and side is None:
            logits = self._replay(sequences)
            if logits is not None:
                return logits
        hidden = self._decoder.forward(
            self._decoder.embed(torch.tensor([each.generated[-1] for each in rows], device=device)),
            torch.tensor(positions, device=device),
            self._cache.step([self._lease(each) for each in rows], positions),
            side,
        )
        if order != list(range(len(order))):
            back = torch.tensor(order, device=device).argsort()
            hidden = hidden[back]
        return self._decoder.logits(hidden)

    def _replay(self, sequences: Rows[Sequence]) -> Tensor | None:
        assert self._graphs is not None
        return self._graphs.run(
            [each.generated[-1] for each in sequences],
            [each.prompt_tokens + len(each.generated) - 1 for each in sequences],
            [self._lease(each) for each in sequences],
        )

    def _side(self, sequences: Rows[Sequence], rows: int = 1) -> Side | None:
        names = [each.request.adapter for each in sequences for _ in range(rows)]
        if not any(names):
            return None
        return of_rows([None if name is None else self._adapters[name] for name in names])

    def _encode(self, sequence: Sequence) -> None:
        assert self._vision is not None
        state, number = self._states[sequence.id], sequence.encoded
        scope = (sequence.request.tenant, state.digest(number)) if self._reuses else None
        if state.unfinished is None and scope is not None:
            known = self._features.get(scope)
            if known is not None:
                self.image_hits += 1
                state.features[number] = known
                sequence.encoded += 1
                return
            self.image_misses += 1
        if state.unfinished is None:
            state.unfinished = self._vision.begin(sequence.request.images[number])
        features = self._vision.advance(state.unfinished, self._stall_s)
        if features is None:
            return
        state.unfinished = None
        state.features[number] = features
        if scope is not None:
            self._features.put(scope, features, features.nbytes)
        sequence.encoded += 1

    def _prefill(self, sequence: Sequence, start: int, end: int) -> Tensor | None:
        state, lease = self._states[sequence.id], self._lease(sequence)
        if start < end:
            x = self._embedded(sequence, state, start, end)
            positions = torch.arange(start, end, device=self._decoder.device)
            attend = self._cache.chunk(lease, start, end, sequence.image_blocks)
            side = self._side([sequence], end - start)
            if side is None and self._graphs is not None and self._graphs.fused:
                hidden = fused.forward(self._decoder, x, positions, attend)
            else:
                hidden = self._decoder.forward(x, positions, attend, side)
            last = hidden[-1:]
            self._keep(sequence, state, end, last)
        else:
            assert state.last is not None
            last, state.last = state.last, None
        return self._decoder.logits(last) if end == sequence.prompt_tokens else None

    def _embedded(self, sequence: Sequence, state: _State, start: int, end: int) -> Tensor:
        device = self._decoder.device
        ids = torch.tensor(sequence.request.tokens[start:end], device=device)
        inside = [(i, s, e) for i, (s, e) in enumerate(sequence.image_blocks) if start <= s and e <= end]
        for _, s, e in inside:
            ids[s - start : e - start] = 0  # the soft token's id may lie beyond the embedding's rows
        x = self._decoder.embed(ids)
        for i, s, e in inside:
            x[s - start : e - start] = state.features.pop(i)
        return x

    def _keep(self, sequence: Sequence, state: _State, end: int, last: Tensor) -> None:
        """Put the beginning that a chunk completed where later sequences find it."""
        if state.key is None:
            return
        whole = end == sequence.prompt_tokens
        if not whole and end not in {e for _, e in sequence.image_blocks[-1:]}:
            return
        beginning = _Beginning(self._cache.keep(self._lease(sequence), end), last.clone() if whole else None)
        scope = self._scope(sequence)
        assert scope is not None
        self._prefixes.put(scope, state.key[:end], beginning, beginning.nbytes)
