"""JSON that must come out right: a schema → which tokens may come next. No torch.

llguidance 1.9.1 does the work. Three libraries were compared at 262,144 tokens with one nested schema
(``tests/benchmarks/grammar_libraries``). It compiled in 1 ms; xgrammar 0.2.8 took 2.7 s, outlines-core 0.2.14
took 55 s. A mask cost 4 µs at the median in all three, at most 0.2 ms here, 0.5 and 8 ms there. outlines-core
has had no release since January 2026, and xgrammar requires triton beside torch and transformers.

A schema is a stranger's program. Some small ones keep the library busy for minutes, so what may be one is refused
before it is compiled: see ``schema``. What gets through is held by the library's own limits on each step.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medport._extras import load
from medport_local.engine.schema import check_schema, refused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 32
"""Compiled schemas that are remembered."""

# One space, or a line break and its indentation: room for every style, and none for endless newlines.
_WHITESPACE = r"[ ]|\r?\n[ \t]{0,32}"
_NAMED = re.compile(r"(?:Unimplemented keys: \[)?(.{0,400}?)(?:\]| constraints are not supported)")
# The only words of a schema that an error repeats.
_UNSUPPORTED = frozenset(
    {
        "not", "if", "then", "else", "oneOf", "uniqueItems", "contains", "minContains", "maxContains",
        "propertyNames", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties",
        "$dynamicRef", "$recursiveRef",
    }
)  # fmt: skip


class Grammars:
    """Compiles schemas for one tokenizer. Costs nothing until the first one; any thread may call it.

    Args:
        pieces: what each token id adds, as bytes (``TextCodec.pieces``).
        encode: the tokenizer, so that what a schema fixes comes out in the tokens that the model knows.
        eos_ids: the end tokens; allowed only where the answer is complete.
        control_ids: tokens that no answer may hold.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        encode: Callable[[str], list[int]],
        *,
        eos_ids: frozenset[int],
        control_ids: frozenset[int],
    ) -> None:
        self._vocabulary = _Vocabulary(pieces, encode, eos_ids, control_ids)
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[bytes, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def json_object(self) -> Grammar:
        """Any JSON object.

        Raises:
            ConfigError: llguidance is not installed.
        """
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON that fulfils a schema, its properties in the schema's order.

        The whole answer is the JSON, from its first token: nothing before it, nothing after it. Where the schema
        leaves ``additionalProperties`` open, so is the answer. CPU work, milliseconds mostly: call it in a worker.

        Raises:
            InputError: names ``response_format.json_schema.schema``: a keyword is not supported, nothing can
                fulfil it, or it is too large or too costly.
            ConfigError: llguidance is not installed.
        """
        text = check_schema(schema)
        key = hashlib.sha256(text.encode()).digest()
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
            if self._tokenizer is None:
                self._tokenizer = self._vocabulary.read()
            tokenizer = self._tokenizer
        made = Grammar(_compiled(tokenizer, text), self._vocabulary.size)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A compiled schema. Shared and never changed."""

    _template: LLMatcher = field(repr=False)
    _size: int = field(repr=False)

    def start(self) -> Matcher:
        """The state of one answer, at its beginning."""
        return Matcher(self._template.deep_copy(), self._size)


class Matcher:
    """How far one answer has come. For one thread at a time."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((size + 31) // 32, dtype=np.uint32)
        self._size = size

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, and nothing but the end may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next: bool ``[tokenizer's vocabulary]``, at least one true.

        Raises:
            InputError: the library's limits are reached; the answer cannot go on.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        flags = np.unpackbits(self._bits.view(np.uint8), count=self._size, bitorder="little")
        return flags.view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed.

        Raises:
            InputError: as ``allowed``.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise refused("became too complex while the answer was written", "simplify it")


class _Vocabulary:
    """What llguidance wants to know of a tokenizer, by the names that it asks for."""

    is_tokenizer_wrapper = True
    bos_token_id: int | None = None

    def __init__(
        self,
        pieces: Sequence[bytes],
        encode: Callable[[str], list[int]],
        eos_ids: frozenset[int],
        control_ids: frozenset[int],
    ) -> None:
        self.size = len(pieces)
        self.special_token_ids = sorted(control_ids)
        self._pieces = pieces
        self._encode = encode
        self._eos_ids = sorted(i for i in eos_ids if i < self.size)
        self.eos_token_id = self._eos_ids[0]

    @property
    def tokens(self) -> list[bytes]:
        control = set(self.special_token_ids)
        return [b"" if i in control else piece for i, piece in enumerate(self._pieces)]

    def read(self) -> LLTokenizer:
        """The library's view of it; takes most of a second at 262,144 tokens."""
        library: Any = load("llguidance", extra="local")
        self._bytes = {piece[0]: i for i, piece in enumerate(self.tokens) if len(piece) == 1}
        tokenizer: LLTokenizer = library.LLTokenizer(self, n_vocab=self.size, eos_token=self._eos_ids)
        return tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text that a schema fixes."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._encode(data.decode())
        # A control word in the schema is text and no token, and some characters are changed on their way in.
        if b"".join(self._pieces[i] for i in ids) != data or not set(self.special_token_ids).isdisjoint(ids):
            return [self._bytes[byte] for byte in data]
        return ids


def _compiled(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    library: Any = load("llguidance", extra="local")
    limits = library.LLParserLimits(
        initial_lexer_fuel=1_000_000,  # 20 ms
        step_lexer_fuel=100_000,  # 7 ms
        step_max_items=50_000,  # 3 ms
        max_lexer_states=20_000,  # 40 MB
        max_grammar_size=200_000,
        verbose_errors=False,
    )
    options = {"whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False}
    try:
        grammar = library.LLMatcher.grammar_from_json_schema(text, overrides=options)
    except ValueError as fault:
        raise refused("is not a JSON schema", "check its syntax") from fault
    matcher: LLMatcher = library.LLMatcher(tokenizer, grammar, limits=limits, log_level=0)
    first = matcher.deep_copy()
    if not matcher.is_error():
        first.compute_bitmask()  # a schema that only refers to itself fails here
    if first.is_error():
        # Its words can quote the schema: only a keyword's name goes out.
        named = _NAMED.match(first.get_error())
        found = _UNSUPPORTED.intersection(re.findall(r"[$A-Za-z]+", named[1])) if named else None
        if found:
            keyword = min(found)
            raise refused(f"{keyword} is not supported here", f"do without {keyword}")
        raise refused("cannot be used: not supported, contradictory or too complex", "simplify it")
    return matcher
