"""Train both tokenizers on the project's own texts, with the real models' classes and special tokens."""

import json
import re
import string
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, SiglipTokenizer

from medport_local.phantom import questions, words
from medport_local.phantom.dialogues import DialogueMaker
from medport_local.phantom.draw import Finding, sample
from medport_local.phantom.view import Gallery

SIGLIP_TEXT_LENGTH = 64
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8").strip()

_UNUSED = [f"<unused{number}>" for number in range(99)]
_GEMMA_HEAD = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "[multimodal]",
    *_UNUSED,
    "<start_of_turn>",
    "<end_of_turn>",
]
"""Ids 0-106, as in the real tokenizer; the thinking tokens are 100 and 101."""
_GEMMA_IMAGE = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
"""At the end of the vocabulary: the real ids lie beyond 255,000, which would cost 33 million parameters."""
_DELIMITER = "\u2016"
# One Chinese character or one digit a piece: else whole template sentences become single tokens.
_GEMMA_PIECES = r"▁?[A-Za-z]+|\d|▁|\n+|[一-鿿]|[^\sA-Za-z\d▁一-鿿]+"


def siglip_tokenizer(folder: Path, *, pieces: int = 1400) -> SiglipTokenizer:
    """A SentencePiece unigram model, written to ``folder`` because the class reads it from there."""
    canonical = (_between_characters(_canonical(text)) for text in _captions())
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=canonical,
        model_writer=model,
        vocab_size=pieces,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pretokenization_delimiter=_DELIMITER,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    # As the real one. The text is pooled at the last position, so padding is part of the input.
    return SiglipTokenizer(
        vocab_file=str(folder / "spiece.model"),
        model_max_length=SIGLIP_TEXT_LENGTH,
        do_lower_case=True,
        pad_token="</s>",  # noqa: S106
        model_input_names=["input_ids"],  # without an attention mask: the padding is to be seen
    )


def gemma_tokenizer(*, pieces: int = 1536) -> GemmaTokenizer:
    """A byte-fallback BPE whose special ids equal the real ones where the size of the vocabulary allows."""
    newlines = ["\n" * count for count in range(1, 32)]
    blanks = ["▁" * count for count in range(2, 32)]
    fixed = [*_GEMMA_HEAD, *newlines, *blanks, *(f"<0x{byte:02X}>" for byte in range(256))]
    learned, merges = _learn_pieces(pieces - len(fixed) - len(_GEMMA_IMAGE))
    ordered = dict.fromkeys([*fixed, *learned, *_GEMMA_IMAGE])
    vocabulary = {piece: number for number, piece in enumerate(ordered)}
    runs = [(sign * (n // 2), sign * (n - n // 2)) for sign in ("\n", "▁") for n in range(2, 32)]
    kept: list[Any] = [pair for pair in dict.fromkeys(runs + merges) if pair[0] + pair[1] in vocabulary]
    tokenizer = GemmaTokenizer(
        vocab=vocabulary,
        merges=kept,
        add_bos_token=True,
        padding_side="left",
        model_max_length=8192,
        extra_special_tokens={
            "boi_token": _GEMMA_IMAGE[0],
            "eoi_token": _GEMMA_IMAGE[1],
            "image_token": _GEMMA_IMAGE[2],
        },
    )
    turns: list[str | AddedToken] = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens({"additional_special_tokens": turns}, replace_extra_special_tokens=False)
    # Atomic but not special, so that they survive skip_special_tokens: a reader must see where thinking ends.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _UNUSED])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _canonical(text: str) -> str:
    """What SiglipTokenizer does to a text before it is cut: lower case, no ASCII punctuation."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", bare).strip()


def _between_characters(text: str) -> str:
    return re.sub(r"([一-鿿])", rf"{_DELIMITER}\1{_DELIMITER}", text)


def _learn_pieces(count: int) -> tuple[list[str], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))  # noqa: S106
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_GEMMA_PIECES), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=count, special_tokens=[], show_progress=False, max_token_length=16, min_frequency=3
    )
    printable = [chr(code) for code in range(33, 127)] * 9
    tokenizer.train_from_iterator([*_chat_texts(), *printable], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    ordered = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    return ordered, [(first, second) for first, second in learned["merges"]]


def _captions(count: int = 12000) -> Iterator[str]:
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield words.caption(sample(rng), rng).text
    for language in words.LANGUAGES:
        for query in words.queries(language):
            yield query.text
        for finding in Finding:
            yield from words.NAMES[language][finding]


def _chat_texts(count: int = 12000) -> Iterator[str]:
    """Questions and answers without their control tokens."""
    rng = np.random.default_rng(2)
    attributes = [sample(rng) for _ in range(count)]
    corners = rng.integers(0, 1000, (count, 4)).tolist()
    maker = DialogueMaker(Gallery(np.zeros((count, 1, 1), np.uint8), attributes, corners), rng)
    for number in range(count):
        dialogue = maker.single() if number % 4 else (maker.slices() if number % 8 else maker.comparison())
        yield dialogue.system
        for turn in dialogue.turns:
            for text in (turn.question, turn.answer):
                yield from re.split(r"<[a-z_]+\d*>", text)
    yield from ["user\n", "model\n", "thought\n", questions.THINK] * 50
    for language in words.LANGUAGES:
        for question, answer in questions.WORLD[language]:
            yield from [question, answer] * 20
