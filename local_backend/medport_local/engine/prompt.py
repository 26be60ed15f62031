"""Messages → token ids, in exactly the form that the model was trained on.

A caller's text stays text: whoever types ``<start_of_turn>`` gets those characters into the prompt and never the
control token. A mark is put inside each such literal before the template is rendered, and the rendered text is cut
at the marks before it is tokenised, so the literal is never whole. What is not cut is tokenised in one piece: the
newlines of template and text merge into single tokens.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from medport.errors import InputError, ServerError
from medport.wire.chat import ImagePart, Message, TextPart
from medport_local.engine.loading import Gemma

# A noncharacter: Unicode keeps it out of text that is exchanged, so no honest caller sends it.
MARK = "\ufdd0"

_SURROGATE = re.compile("[\ud800-\udfff]")

_Piece: TypeAlias = "str | None"
"""A run of text, or ``None`` for an image."""


class PromptBuilder:
    """Renders, guards and tokenises chats for one model."""

    def __init__(self, gemma: Gemma, *, model_id: str, max_context: int, max_images: int) -> None:
        self._text = gemma.text
        self._takes_images = gemma.images is not None
        self._image_token_id = gemma.image_token_id
        self._image_tokens = gemma.image_tokens
        self._model_id = model_id
        self._max_context = max_context
        self._max_images = max_images
        words = sorted(gemma.text.control_words, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, words)))

    def check(self, messages: Sequence[Message]) -> list[str]:
        """Validate the chat; gives the URL of each image, in order.

        Raises:
            InputError: names the message and what to change.
        """
        start = 1 if messages and messages[0].role == "system" else 0
        for i, message in enumerate(messages[start:]):
            expected = "user" if i % 2 == 0 else "assistant"
            if message.role != expected:
                raise InputError(
                    f"is {message.role} where {expected} must stand",
                    field=f"messages[{start + i}].role",
                    remedy="after an optional system message, let user and assistant alternate, user first",
                )
        if len(messages) == start or messages[-1].role != "user":
            raise InputError(
                "the last message must be the user's",
                field=f"messages[{len(messages) - 1}].role",
                remedy="end with what the user asks",
            )
        for i, message in enumerate(messages):
            self._check_content(message, f"messages[{i}].content")
        urls = [
            part.image_url.url
            for message in messages
            if not isinstance(message.content, str)
            for part in message.content
            if isinstance(part, ImagePart)
        ]
        self._check_images(len(urls), "messages")
        return urls

    def build(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a checked chat, each image as its block of soft tokens.

        Raises:
            InputError: the prompt does not fit into the model's context.
        """
        rendered = self._text.render([self._plain(message) for message in messages])
        images = sum(
            not isinstance(part, TextPart) for m in messages if isinstance(m.content, list) for part in m.content
        )
        if rendered.count(self._text.image_mark) != images:
            raise ServerError(
                "the chat template does not place every image", remedy="check the snapshot's template"
            )
        return self._tokens(rendered.split(MARK), images, "messages")

    def raw(self, text: str, images: int, *, add_bos: bool = True) -> tuple[int, ...]:
        """Token ids of a prompt without a chat template, as the first serving containers took it.

        The caller writes the control words, and they are honoured: that is this form's contract. Each
        ``<start_of_image>`` becomes an image's block.

        Args:
            images: how many there are; the text has a place for each.
            add_bos: put the beginning token in front, unless the text begins with it.

        Raises:
            InputError: names ``prompt``: it is empty, has other places for images than there are images, holds
                soft tokens or what is not Unicode text, or does not fit into the model's context.

        Source: Google-Health/medgemma, notebooks/quick_start_with_model_garden.ipynb of 2025-07.
        """
        _check_text(text, "prompt")
        if not text.strip():
            raise InputError("the prompt is empty", field="prompt", remedy="write a question")
        if self._text.image_word in text:
            raise InputError(
                f"holds {self._text.image_word}", field="prompt", remedy=f"write {self._text.image_mark} instead"
            )
        places = text.count(self._text.image_mark)
        if places != images:
            raise InputError(
                f"has {places} places for {images} images",
                field="prompt",
                remedy=f"write {self._text.image_mark} once for each image",
            )
        self._check_images(images, "prompt")
        front = self._text.bos if add_bos and not text.startswith(self._text.bos) else ""
        return self._tokens([front + text], images, "prompt")

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens the answer to a prompt may have at most."""
        return self._max_context - len(tokens)

    def _tokens(self, parts: Sequence[str], images: int, field: str) -> tuple[int, ...]:
        """Token ids of text with a mark for each image. The parts are tokenised apart, and joined."""
        # One soft token stands for the block, and becomes it afterwards: thousands of them are slow to tokenise.
        block = self._text.image_sequence(1)
        if sum(map(len, parts)) > self._max_context * self._text.longest:
            # A million characters take seconds to tokenise; these cannot fit, however they are cut.
            raise self._too_long(f"more than {self._max_context}", field)
        ids = [i for part in parts for i in self._text.encode(part.replace(self._text.image_mark, block))]
        if self._image_token_id is not None and ids.count(self._image_token_id) != images:
            raise ServerError(
                "the tokenizer does not keep image tokens apart", remedy="check the snapshot's tokenizer"
            )
        count = len(ids) + images * (self._image_tokens - 1)
        if count >= self._max_context:
            raise self._too_long(str(count), field)
        if not images:
            return tuple(ids)
        soft, times = self._image_token_id, self._image_tokens
        return tuple(itertools.chain.from_iterable([i] * times if i == soft else [i] for i in ids))

    def _too_long(self, tokens: str, field: str) -> InputError:
        return InputError(
            f"the prompt has {tokens} tokens, and {self._model_id} takes {self._max_context} with the answer",
            field=field,
            remedy="shorten the text or send fewer images",
        )

    def _check_content(self, message: Message, field: str) -> None:
        pieces = _pieces(message)
        for piece in pieces:
            _check_text(piece or "", field)
        if any(MARK in piece for piece in pieces if piece is not None):
            raise InputError("holds U+FDD0, which is not a character", field=field, remedy="remove it")
        if message.role == "user" and not any(piece is None or piece.strip() for piece in pieces):
            raise InputError("the prompt is empty", field=field, remedy="write a question, or send an image")
        if message.role != "user" and None in pieces:
            raise InputError(
                f"a {message.role} message cannot hold images",
                field=field,
                remedy="put the image into a user message",
            )

    def _check_images(self, images: int, field: str) -> None:
        if images and not self._takes_images:
            raise InputError(f"{self._model_id} takes text only", field=field, remedy="leave the images out")
        if images > self._max_images:
            raise InputError(
                f"{images} images, and this server takes {self._max_images} in a request",
                field=field,
                remedy="send fewer images",
            )

    def _plain(self, message: Message) -> Mapping[str, object]:
        """The message as the template wants it, its literals marked."""
        pieces = _pieces(message)
        if message.role == "system":
            # The published template reads only the first part of a system message.
            return {"role": "system", "content": self._guarded("\n".join(p for p in pieces if p is not None))}
        if isinstance(message.content, str):
            return {"role": message.role, "content": self._guarded(message.content)}
        parts = [
            {"type": "image"} if piece is None else {"type": "text", "text": self._guarded(piece)}
            for piece in _joined(pieces)
        ]
        return {"role": message.role, "content": parts}

    def _guarded(self, text: str) -> str:
        return self._control.sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text)


def _check_text(text: str, field: str) -> None:
    """Refuse half a surrogate pair, which JSON can write and no tokenizer can read."""
    if not text.isascii() and _SURROGATE.search(text):
        raise InputError("holds half a surrogate pair, which is not a character", field=field, remedy="remove it")


def _pieces(message: Message) -> list[_Piece]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text if isinstance(part, TextPart) else None for part in message.content]


def _joined(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Neighbouring texts as one, trimmed as the template trims each of them.

    The template writes them without a gap, so a control literal could be spread over two.
    """
    joined: list[_Piece] = []
    for piece in pieces:
        if piece is not None and joined and joined[-1] is not None:
            joined[-1] += piece.strip()
        else:
            joined.append(piece if piece is None else piece.strip())
    return joined
