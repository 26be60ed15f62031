"""The caches of features and prefixes, without torch, against brute force."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport_local.engine.reuse import (
    Blocks,
    Budget,
    ByteLru,
    Key,
    Prefixes,
    Scope,
    image_digest,
    legal_edge,
    prompt_key,
)

WINDOW = 6
BLOCK = 3


@dataclass
class Clock:
    """Time that moves when told."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Prompt:
    """Tokens and the places of images, as the engine has them."""

    tokens: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...] = ()
    digests: tuple[bytes, ...] = ()

    @property
    def key(self) -> Key:
        return prompt_key(self.tokens, self.blocks, self.digests)

    def edges(self) -> list[int]:
        return [n for n in range(1, len(self.tokens) + 1) if not any(s < n < e for s, e in self.blocks)]


def digest(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def text(*tokens: int) -> Prompt:
    return Prompt(tokens)


def prefixes(max_bytes: int = 1000, clock: Clock | None = None, window: int = WINDOW) -> Prefixes[str]:
    return Prefixes(max_bytes, window=window, max_idle_s=100, clock=clock or Clock())


# Pieces: a text token, or an image as None and which one.
pieces = st.lists(st.one_of(st.integers(1, 2), st.tuples(st.none(), st.integers(1, 2))), min_size=1, max_size=8)


def assemble(parts: list[int | tuple[None, int]]) -> Prompt:
    tokens: list[int] = []
    blocks: list[tuple[int, int]] = []
    digests: list[bytes] = []
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
        else:
            blocks.append((len(tokens), len(tokens) + BLOCK))
            digests.append(digest(part[1]))
            tokens += [9] * BLOCK
    return Prompt(tuple(tokens), tuple(blocks), tuple(digests))


prompts = pieces.map(assemble)
scopes: st.SearchStrategy[Scope] = st.sampled_from([("", None), ("", "lora"), ("a", None)])


@dataclass
class Oracle:
    """What ``Prefixes`` promises, the slow way: all entries are kept in a list, the last one used at its end."""

    max_bytes: int
    entries: list[tuple[Scope, tuple[int, ...], int, int]] = field(default_factory=list)

    def put(self, scope: Scope, content: tuple[int, ...], payload: int, nbytes: int) -> None:
        self.entries = [each for each in self.entries if each[:2] != (scope, content)]
        if nbytes <= self.max_bytes:
            self.entries.append((scope, content, payload, nbytes))
            while sum(each[3] for each in self.entries) > self.max_bytes:
                self.entries.pop(0)

    def lengths(self, scope: Scope, prompt: Prompt) -> dict[int, int]:
        """Payload → the longest use of it, for every entry that is of use."""
        content = tuple(prompt.key.tolist())
        found = {}
        for kept_scope, kept, payload, _ in self.entries:
            usable = [
                edge
                for edge in prompt.edges()
                if kept_scope == scope
                and kept[:edge] == content[:edge]
                and (edge == len(kept) or (edge < len(kept) <= WINDOW and edge < len(content)))
            ]
            if usable:
                found[payload] = max(usable)
        return found

    def use(self, payload: int) -> None:
        [used] = [each for each in self.entries if each[2] == payload]
        self.entries.remove(used)
        self.entries.append(used)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("put"), scopes, prompts, st.integers(0, 30), st.integers(1, 12)),
            st.tuples(st.just("find"), scopes, prompts, st.just(0), st.just(0)),
        ),
        max_size=30,
    ),
    bound=st.integers(0, 30),
)
def test_find_is_what_brute_force_finds_and_the_bound_holds_at_every_step(
    steps: list[tuple[str, Scope, Prompt, int, int]], bound: int
) -> None:
    cache: Prefixes[int] = Prefixes(bound, window=WINDOW, clock=Clock())
    oracle = Oracle(bound)
    asked = 0
    for payload, (what, scope, prompt, cut, nbytes) in enumerate(steps):
        if what == "put":
            edges = prompt.edges()
            edge = edges[cut % len(edges)]
            cache.put(scope, prompt.key[:edge], payload, nbytes)
            oracle.put(scope, tuple(prompt.key[:edge].tolist()), payload, nbytes)
        else:
            before, expected = cache.hits, oracle.lengths(scope, prompt)
            found = cache.find(scope, prompt.key, prompt.blocks)
            asked += len(prompt.tokens)
            if found is None:
                assert expected == {}
                assert cache.hits == before
            else:
                assert found[0] == expected[found[1]] == max(expected.values())
                assert cache.hits == before + found[0]
                oracle.use(found[1])
        assert cache.used_bytes == sum(each[3] for each in oracle.entries) <= bound
        assert cache.hits + cache.misses == asked


@given(prompt=prompts, other=prompts)
def test_keys_are_equal_only_where_tokens_and_images_are(prompt: Prompt, other: Prompt) -> None:
    assert np.array_equal(prompt.key, other.key) == (prompt == other)


@given(limit=st.integers(0, 30), prompt=prompts)
def test_legal_edge_is_the_last_place_outside_every_block(limit: int, prompt: Prompt) -> None:
    outside = [n for n in range(limit + 1) if not any(start < n < end for start, end in prompt.blocks)]

    assert legal_edge(limit, prompt.blocks) == outside[-1]


def test_soft_tokens_become_negative_and_text_tokens_stay() -> None:
    key = assemble([5, (None, 1), 6, (None, 1)]).key

    assert key[[0, 4]].tolist() == [5, 6]
    assert (key[[1, 2, 3, 5, 6, 7]] < 0).all()
    assert key[1:4].tolist() == key[5:8].tolist()
    assert len(set(key[1:4].tolist())) == BLOCK


def test_image_digest_tells_pixels_apart_and_not_memory_layouts() -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    moved = np.asfortranarray(pixels)
    other = pixels.copy()
    other[2, 1, 1] = np.nextafter(other[2, 1, 1], np.float32(np.inf))

    assert image_digest(moved) == image_digest(pixels)
    assert image_digest(other) != image_digest(pixels)


def test_same_text_around_another_image_shares_only_what_is_before_it() -> None:
    cache = prefixes(window=100)
    cache.put(("", None), assemble([1, 2, (None, 1), 1]).key, "first", 10)
    other = assemble([1, 2, (None, 2), 1])

    assert cache.find(("", None), other.key, other.blocks) == (2, "first")


def test_prefix_longer_than_the_window_serves_only_its_own_length() -> None:
    cache = prefixes()
    cache.put(("", None), text(1, 2, 1, 2, 1, 2, 1).key, "wrapped", 10)

    assert cache.find(("", None), text(1, 2, 1, 2, 1, 2, 2).key, ()) is None
    assert cache.find(("", None), text(1, 2, 1, 2, 1, 2, 1, 2).key, ()) == (7, "wrapped")


def test_prefix_as_long_as_the_window_serves_any_part_of_it() -> None:
    cache = prefixes()
    cache.put(("", None), text(1, 2, 1, 2, 1, 2).key, "full ring", 10)

    assert cache.find(("", None), text(1, 2, 1, 1).key, ()) == (3, "full ring")


def test_prompt_that_ends_with_an_image_is_cut_before_it() -> None:
    cache = prefixes()
    cache.put(("", None), assemble([1, (None, 1), 2]).key, "longer", 10)
    prompt = assemble([1, (None, 1)])

    assert cache.find(("", None), prompt.key, prompt.blocks) == (1, "longer")


def test_whole_prompt_is_used_only_where_the_entry_ends_there() -> None:
    cache = prefixes()
    cache.put(("", None), text(1, 2, 1, 2).key, "longer", 10)
    prompt = text(1, 2, 1).key

    assert cache.find(("", None), prompt, ()) == (2, "longer")
    cache.put(("", None), prompt, "exact", 10)
    assert cache.find(("", None), prompt, ()) == (3, "exact")


@pytest.mark.parametrize("stranger", [("b", None), ("a", "lora"), ("", None)])
def test_another_tenant_or_adapter_finds_nothing(stranger: Scope) -> None:
    cache = prefixes()
    cache.put(("a", None), text(1, 2, 3).key, "secret", 10)

    assert cache.find(stranger, text(1, 2, 3, 4).key, ()) is None
    assert cache.find(("a", None), text(1, 2, 3, 4).key, ()) == (3, "secret")


def test_stored_key_is_a_copy_of_its_own() -> None:
    cache = prefixes()
    key = text(1, 2, 3).key
    cache.put(("", None), key, "kept", 10)
    key[:] = 7

    assert cache.find(("", None), text(7, 7, 7, 7).key, ()) is None
    assert cache.find(("", None), text(1, 2, 3, 4).key, ()) == (3, "kept")


def test_idle_entries_are_gone_and_used_ones_are_not() -> None:
    clock = Clock()
    cache = prefixes(clock=clock)
    cache.put(("", None), text(1, 1).key, "used", 10)
    cache.put(("", None), text(2, 2).key, "idle", 10)
    clock.now = 90
    cache.find(("", None), text(1, 1, 3).key, ())
    clock.now = 101

    cache.expire()

    assert cache.used_bytes == 10
    assert cache.find(("", None), text(2, 2, 3).key, ()) is None
    assert cache.find(("", None), text(1, 1, 3).key, ()) == (2, "used")


def test_idle_entry_is_not_found_even_if_nobody_calls_expire() -> None:
    clock = Clock()
    cache = prefixes(clock=clock)
    cache.put(("", None), text(1, 1).key, "idle", 10)
    clock.now = 101

    assert cache.find(("", None), text(1, 1, 3).key, ()) is None
    assert cache.used_bytes == 0


def test_entry_that_becomes_too_old_while_it_is_found_is_still_given() -> None:
    class Hurried(Clock):
        def __call__(self) -> float:
            self.now += 60
            return self.now

    cache = prefixes(clock=Hurried())
    cache.put(("", None), text(1, 2).key, "kept", 10)

    assert cache.find(("", None), text(1, 2, 3).key, ()) == (2, "kept")


def test_clear_forgets_everything_and_keeps_the_counters() -> None:
    cache = prefixes()
    cache.put(("", None), text(1, 2).key, "kept", 10)
    cache.find(("", None), text(1, 2, 3).key, ())

    cache.clear()

    assert (len(cache), cache.used_bytes, cache.hits, cache.misses) == (0, 0, 2, 1)
    assert cache.find(("", None), text(1, 2, 3).key, ()) is None


def test_dropped_tenant_is_gone_with_all_adapters_and_no_other_is() -> None:
    cache = prefixes()
    for scope in (("a", None), ("a", "lora"), ("b", None)):
        cache.put(scope, text(1, 2).key, "kept", 10)

    cache.drop("a")

    assert (len(cache), cache.used_bytes) == (1, 10)
    assert cache.find(("b", None), text(1, 2, 3).key, ()) == (2, "kept")


def test_empty_prompt_finds_nothing() -> None:
    assert prefixes().find(("", None), text().key, ()) is None


def test_lru_evicts_what_was_used_longest_ago() -> None:
    cache: ByteLru[str, str] = ByteLru(30)
    for name in "abc":
        cache.put(name, name.upper(), 10)
    cache.get("a")

    cache.put("d", "D", 20)

    assert [cache.get(name) for name in "abcd"] == ["A", None, None, "D"]
    assert cache.used_bytes == 30


def test_value_larger_than_the_bound_is_not_kept_and_evicts_nothing_else() -> None:
    cache: ByteLru[str, str] = ByteLru(30)
    cache.put("small", "kept", 10)
    cache.put("grown", "before", 10)

    assert not cache.put("grown", "after", 31)

    assert (cache.get("small"), cache.get("grown"), cache.used_bytes) == ("kept", None, 10)


def test_replaced_value_gives_its_bytes_back() -> None:
    cache: ByteLru[str, str] = ByteLru(30)
    cache.put("a", "before", 20)

    cache.put("a", "after", 5)

    assert (cache.get("a"), cache.used_bytes, len(cache)) == ("after", 5, 1)


def test_bound_of_zero_keeps_nothing() -> None:
    cache: ByteLru[str, str] = ByteLru(0)

    assert not cache.put("a", "A", 1)
    assert cache.get("a") is None


def test_shared_budget_evicts_the_oldest_of_either_cache() -> None:
    budget = Budget(30)
    features: ByteLru[bytes, str] = ByteLru(budget)
    prompts: Prefixes[str] = Prefixes(budget, window=WINDOW)
    features.put(b"old", "feature", 10)
    prompts.put(("", None), text(1, 2).key, "prefix", 10)
    features.put(b"young", "feature", 10)
    features.get(b"old")

    features.put(b"more", "feature", 10)

    assert prompts.find(("", None), text(1, 2, 3).key, ()) is None
    assert features.get(b"old") == "feature"
    assert (features.used_bytes, prompts.used_bytes, budget.used_bytes) == (30, 0, 30)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from("pgdc"), st.integers(0, 4), st.integers(1, 12)), max_size=40
    )
)
def test_shared_budget_is_the_sum_of_its_caches_and_never_above_the_bound(
    steps: list[tuple[int, str, int, int]],
) -> None:
    budget = Budget(20)
    caches: list[ByteLru[int, int]] = [ByteLru(budget), ByteLru(budget)]
    for which, what, key, nbytes in steps:
        cache = caches[which]
        if what == "p":
            cache.put(key, nbytes, nbytes)
        elif what == "g":
            cache.get(key)
        elif what == "d":
            cache.discard(key)
        else:
            cache.clear()
        kept = sum(value for each in caches for _, value in each.newest_first())
        assert kept == sum(each.used_bytes for each in caches) == budget.used_bytes <= budget.max_bytes


def test_evicted_payload_is_freed_at_once() -> None:
    class Payload:
        freed = 0

        def __del__(self) -> None:
            Payload.freed += 1

    cache: ByteLru[str, Payload] = ByteLru(10)
    cache.put("a", Payload(), 10)

    cache.put("b", Payload(), 10)

    assert Payload.freed == 1


def test_caches_need_no_torch() -> None:
    code = "import sys, medport_local.engine.reuse; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_blocks_of_another_prompt_are_never_cut() -> None:
    """A wrapped prefix may end where only this prompt has an image; then it is of no use."""
    cache = prefixes(window=2)
    prompt = assemble([1, (None, 1), 2])
    cache.put(("", None), prompt.key[:3], "cut", 10)
    blocks: Blocks = prompt.blocks

    assert cache.find(("", None), prompt.key, blocks) is None
