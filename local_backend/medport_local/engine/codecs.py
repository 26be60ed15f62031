"""The edges of the models: text ↔ token ids, pixels → model input. Wraps what the loader gives it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medport.errors import VerificationError

Rgb = npt.NDArray[np.uint8]
PixelValues = npt.NDArray[np.float32]

_CONTROL_WORDS = re.compile(r"<unused\d+>|<mask>|\[multimodal\]")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_PROBE = "Aa 1.\n\n肺 é\U0001fa7b"


class TextCodec:
    """Gemma's tokenizer and chat template, as far as the engine uses them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.longest = max(map(len, tokenizer.get_vocab()))
        """The most characters that one token can stand for."""
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        self.control_words = frozenset(
            str(token.content)
            for token in added.values()
            if token.special or _CONTROL_WORDS.fullmatch(token.content)
        ) | frozenset(tokenizer.all_special_tokens)
        """The literals that mean something to the model and must never come out of a caller's text."""
        self.control_ids = frozenset(int(i) for i in tokenizer.convert_tokens_to_ids(sorted(self.control_words)))
        # <unusedN> stays readable in any case: the reader must see where a thought ends.
        self.silent_ids = frozenset(
            int(i) for i, token in added.items() if token.special and not _CONTROL_WORDS.fullmatch(token.content)
        ) | frozenset(int(i) for i in tokenizer.all_special_ids)

    def render(self, messages: Sequence[Mapping[str, object]]) -> str:
        """The chat template's text, ready for the model to go on."""
        text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` as it stands, control words included."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def image_sequence(self, soft_tokens: int) -> str:
        """What stands in the text for one image, as Gemma3Processor writes it."""
        t = self._tokenizer
        return f"\n\n{t.boi_token}{t.image_token * soft_tokens}{t.eoi_token}\n\n"

    @property
    def image_mark(self) -> str:
        """What the template writes for an image part."""
        mark: str = self._tokenizer.boi_token
        return mark

    @property
    def image_word(self) -> str:
        """The literal of one soft token."""
        word: str = self._tokenizer.image_token
        return word

    @property
    def bos(self) -> str:
        """The literal that every prompt begins with."""
        word: str = self._tokenizer.bos_token
        return word

    def special_pieces(self) -> dict[int, bytes]:
        """The literals of the tokens that ``pieces`` leaves empty."""
        words: list[str] = self._tokenizer.convert_ids_to_tokens(sorted(self.silent_ids))
        return {i: word.encode() for i, word in zip(sorted(self.silent_ids), words, strict=True)}

    def pieces(self) -> list[bytes]:
        """What each token id adds to the text, as bytes; byte-fallback pieces are single bytes.

        Raises:
            VerificationError: the tokenizer decodes in a way that this table does not cover.
        """
        vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        table = [b""] * (max(vocabulary.values()) + 1)
        for piece, number in vocabulary.items():
            if number not in self.silent_ids:
                byte = _BYTE_PIECE.fullmatch(piece)
                table[number] = bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
        ids = self.encode(_PROBE)
        if b"".join(table[i] for i in ids).decode("utf-8", "replace") != self.decode(ids):
            raise VerificationError("tokenizer.json: decodes in an unknown way", field="tokenizer.json")
        return table


MAX_TEXT = 65_536
"""Characters that are looked at for MedSigLIP's 64 tokens; tokenising a text of megabytes takes seconds."""


class SiglipTextCodec:
    """MedSigLIP's tokenizer. Text is pooled at the last position, so padding to the full length is part of it."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 ``[texts, length]``."""
        encoded = self._tokenizer(
            [text[:MAX_TEXT] for text in texts],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        ids: torch.Tensor = encoded["input_ids"]
        return ids


class ImageCodec:
    """The model's own resizing and scaling, on the PIL backend."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.side_px = int(processor.size["height"])
        """Of the square that the model sees."""

    def pixel_values(self, rgb: Rgb) -> PixelValues:
        """uint8 ``[height, width, 3]`` → float32 ``[3, size, size]`` in -1 … 1."""
        done = self._processor(images=[rgb], return_tensors="np", input_data_format="channels_last")
        values: PixelValues = np.ascontiguousarray(np.asarray(done["pixel_values"])[0], dtype=np.float32)
        return values
