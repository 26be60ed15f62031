"""What does a JSON schema cost a token at 262,144 tokens: llguidance, xgrammar and outlines-core side by side.

Each library that is installed reads the same synthetic vocabulary, compiles the same nested schema, and then
follows the same documents token by token: one mask, one step. What is not installed is left out.
outlines-core compiles a regular expression to an index over all tokens, which takes long: it comes last.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import harness
import torch

SIZE = 262_144
EOS = 1
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "study": {
            "type": "object",
            "properties": {
                "modality": {"enum": ["CR", "DX", "CT", "MR"]},
                "view": {"enum": ["PA", "AP", "lateral"]},
                "quality": {"type": "integer", "minimum": 1, "maximum": 5},
            },
            "required": ["modality", "view", "quality"],
            "additionalProperties": False,
        },
        "findings": {
            "type": "array",
            "maxItems": 8,
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "string", "maxLength": 80},
                    "side": {"anyOf": [{"enum": ["left", "right", "both"]}, {"type": "null"}]},
                    "confidence": {"type": "number"},
                    "box": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
                },
                "required": ["label", "side", "confidence", "box"],
                "additionalProperties": False,
            },
        },
        "impression": {"type": "string"},
        "urgent": {"type": "boolean"},
    },
    "required": ["study", "findings", "impression", "urgent"],
    "additionalProperties": False,
}


class Vocabulary:
    """Bytes, characters, words with and without a space before, digits, marks: as a large tokenizer has them."""

    bos_token_id = None
    eos_token_id = EOS
    special_token_ids = (0, 1, 2)

    def __init__(self, size: int = SIZE) -> None:
        rng = random.Random(7)
        pieces: dict[bytes, None] = {bytes([b]): None for b in range(256)}
        marks = [c * n for c in ' \n\t"{}[],:.-_=/*#' for n in range(2, 17)]
        marks += ['{"', '":', '": ', '", "', '",', '"}', "}]", "},", "],", '["', ': "', "\n  ", "\n    "]
        for text in [*marks, *map(str, range(1000)), "true", "false", "null", *_words(json.dumps(SCHEMA))]:
            pieces[text.encode()] = None
            pieces[f" {text}".encode()] = None
        syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t", "l")]
        while len(pieces) < size - 3:
            if rng.random() < 0.15:  # other scripts
                word = "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 3)))
            else:
                word = "".join(rng.choice(syllables) for _ in range(rng.randint(1, 4)))
            word = word.capitalize() if rng.random() < 0.2 else word
            pieces[(" " + word if rng.random() < 0.6 else word).encode()] = None
        self.tokens = [b"", b"", b"", *list(pieces)[: size - 3]]
        self._ids = {piece: i for i, piece in enumerate(self.tokens) if piece}
        self._longest = max(map(len, self._ids))
        self._syllables = syllables

    def __call__(self, text: str | bytes) -> list[int]:
        """The longest piece at each place."""
        data = text.encode() if isinstance(text, str) else text
        ids, place = [], 0
        while place < len(data):
            most = min(self._longest, len(data) - place)
            length = next(n for n in range(most, 0, -1) if data[place : place + n] in self._ids)
            ids.append(self._ids[data[place : place + length]])
            place += length
        return ids

    def documents(self, count: int) -> list[list[int]]:
        """Valid documents as tokens, the end token behind."""
        rng = random.Random(3)

        def words(n: int) -> str:
            return " ".join("".join(rng.choices(self._syllables, k=rng.randint(1, 3))) for _ in range(n))

        def document() -> dict[str, object]:
            finding = {
                "label": words(3),
                "side": rng.choice(["left", "right", "both", None]),
                "confidence": round(rng.random(), 3),
                "box": [rng.randint(0, 1000) for _ in range(4)],
            }
            study = {"modality": "DX", "view": "PA", "quality": rng.randint(1, 5)}
            findings = [finding] * rng.randint(0, 3)
            return {"study": study, "findings": findings, "impression": words(20), "urgent": False}

        return [[*self(json.dumps(document())), EOS] for _ in range(count)]


@dataclass(frozen=True)
class Driver:
    """One library: its vocabulary read, its schema compiled, a mask and a step."""

    tokenizer_s: float
    compile_s: float
    start: Callable[[], Any]
    mask: Callable[[Any], None]
    step: Callable[[Any, int], bool]


def llguidance(vocabulary: Vocabulary, mask: torch.Tensor) -> Driver:
    from llguidance import LLMatcher, LLTokenizer

    vocabulary.is_tokenizer_wrapper = True  # type: ignore[attr-defined]
    began = time.perf_counter()
    tokenizer = LLTokenizer(vocabulary, n_vocab=SIZE, eos_token=EOS)  # type: ignore[arg-type]
    read = time.perf_counter()
    options: Any = {"whitespace_pattern": r"[ ]|\r?\n[ \t]{0,32}"}
    template = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides=options))
    assert not template.is_error()
    done = time.perf_counter()
    return Driver(
        read - began,
        done - read,
        template.deep_copy,
        lambda matcher: matcher.unsafe_compute_mask_ptr(mask.data_ptr(), mask.numel() * 4),
        lambda matcher, token: bool(matcher.consume_token(token)),
    )


def xgrammar(vocabulary: Vocabulary, mask: torch.Tensor) -> Driver:
    library: Any = importlib.import_module("xgrammar")
    began = time.perf_counter()
    info = library.TokenizerInfo(vocabulary.tokens, library.VocabType.RAW, vocab_size=SIZE, stop_token_ids=[EOS])
    compiler = library.GrammarCompiler(info, max_threads=2)
    read = time.perf_counter()
    compiled = compiler.compile_json_schema(json.dumps(SCHEMA), any_whitespace=True, max_whitespace_cnt=32)
    done = time.perf_counter()
    return Driver(
        read - began,
        done - read,
        lambda: library.GrammarMatcher(compiled),
        lambda matcher: matcher.fill_next_token_bitmask(mask),
        lambda matcher, token: bool(matcher.accept_token(token)),
    )


def outlines_core(vocabulary: Vocabulary, mask: torch.Tensor) -> Driver:
    library: Any = importlib.import_module("outlines_core")
    began = time.perf_counter()
    table = {piece: [i] for i, piece in enumerate(vocabulary.tokens) if piece}
    words = library.Vocabulary(EOS, table)
    read = time.perf_counter()
    index = library.Index(library.json_schema.build_regex_from_schema(json.dumps(SCHEMA), r"[ ]?"), words)
    done = time.perf_counter()

    def step(guide: Any, token: int) -> bool:
        if token == EOS:
            return bool(guide.is_finished())
        guide.advance(token, return_tokens=False)
        return True

    return Driver(
        read - began,
        done - read,
        lambda: library.Guide(index),
        lambda guide: guide.write_mask_into(mask.data_ptr(), mask.numel(), 4),
        step,
    )


LIBRARIES: dict[str, Callable[[Vocabulary, torch.Tensor], Driver]] = {
    "llguidance": llguidance,
    "xgrammar": xgrammar,
    "outlines_core": outlines_core,
}


def main() -> None:
    given = harness.arguments(__doc__, rounds=20)
    vocabulary = Vocabulary()
    documents = vocabulary.documents(given.rounds)
    mask = torch.zeros((1, SIZE // 32), dtype=torch.int32)
    table, notes = [], []
    for name, open_library in LIBRARIES.items():
        try:
            importlib.import_module(name)
        except ImportError:
            notes.append(f"{name} is not installed")
            continue
        driver = open_library(vocabulary, mask)
        masks, steps = _follow(driver, documents, mask)
        for what, times in (("mask", masks), ("step", steps)):
            ordered = sorted(times)
            middle = harness.percentile(ordered, 50)
            table.append(harness.Row(what, name, len(times), middle, harness.percentile(ordered, 95), "ms"))
        notes.append(
            f"{name}: slowest mask {max(masks):.2f} ms; vocabulary read in {driver.tokenizer_s:.2f} s, schema "
            f"compiled in {driver.compile_s * 1e3:.0f} ms, import {_import_ms(name):.0f} ms, "
            f"{_size_mb(name):.1f} MB"
        )
        print(notes[-1], flush=True)
    harness.report(__doc__, table, given.json, notes=notes)


def _follow(driver: Driver, documents: list[list[int]], mask: torch.Tensor) -> tuple[list[float], list[float]]:
    """Milliseconds of each mask and each step. The first document warms up."""
    masks: list[float] = []
    steps: list[float] = []
    for number, document in enumerate(documents):
        state = driver.start()
        for token in document:
            began = time.perf_counter()
            driver.mask(state)
            middle = time.perf_counter()
            assert mask[0, token // 32] >> (token % 32) & 1, "the mask must allow a valid document"
            asked = time.perf_counter()
            assert driver.step(state, token)
            if number:
                masks.append((middle - began) * 1e3)
                steps.append((time.perf_counter() - asked) * 1e3)
    return masks, steps


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def _import_ms(name: str) -> float:
    code = f"import time, torch; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout) * 1e3


def _size_mb(name: str) -> float:
    files = distribution(name.replace("_", "-")).files or []
    return sum(file.size or 0 for file in files) / 1e6


if __name__ == "__main__":
    main()
