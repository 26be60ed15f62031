"""Chat: prompt, messages and images → one call; thinking split from the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import orjson

from medport import images as im
from medport._call import Base64, Body, Call, Reply
from medport.errors import ImageError, InputError, ProtocolError
from medport.results import Chat, Delta, Provenance, Usage
from medport.wire import chat as wire
from medport.wire import checked

Prompt = str | Sequence[Mapping[str, Any]]
Images = im.Source | Sequence[im.Source]

THINK = "SYSTEM INSTRUCTION: think silently if needed. "
"""What turns thinking on, put before the system text (MedGemma notebooks, quick start)."""
_BEGIN, _END, _HEAD = "<unused94>", "<unused95>", "thought\n"


class ChatOptions(TypedDict, total=False):
    """Options of ``chat`` and ``chat_stream``."""

    system: str
    """What the model is to be, e.g. "You are an expert radiologist."."""
    max_tokens: int
    """Longest answer in tokens, thinking included; 1 to 131,072; default 1,024."""
    temperature: float
    """0 (default, greedy) to 2."""
    top_p: float
    """Sample from the smallest set of tokens with this probability; over 0 to 1."""
    top_k: int
    """Sample from so many tokens; -1 or 0: all."""
    seed: int
    """Same seed, same text, on the same backend."""
    stop: str | Sequence[str]
    """The answer ends before any of these, at most 16."""
    thinking: bool
    """Ask the model to think first. Models that cannot, answer at once."""
    adapter: str
    """A LoRA adapter that a medport server has beside the model, by its name; see its ``/v1/models``."""
    wait_until_ready: float
    """Seconds to wait for a cold endpoint."""
    timeout_s: float
    """Deadline of this call, in place of the profile's."""


def call(prompt: Prompt, images: Images, options: ChatOptions, *, stream: bool) -> Call[Chat]:
    """Build the call.

    Raises:
        InputError: empty prompt, wrong role, an option out of its range; names the field.
        ImageError: an image cannot be read; names which.
    """
    sampling = _sampling(options)
    messages = _messages(prompt, as_list(images), options)
    chosen = {k: v for k, v in sampling.model_dump().items() if k in options or k in ("max_tokens", "temperature")}
    named = _named(options)
    request = {"messages": messages, **named, **chosen}
    if stream:
        request |= {"model": "", **named, "stream": True, "stream_options": {"include_usage": True}}
        body = _json(request)
    else:
        body = _json({"instances": [{"@requestFormat": wire.REQUEST_FORMAT, **request}]})
    return Call("medgemma", "chat/completions" if stream else "predict", body, _read, chosen)


def _sampling(options: ChatOptions) -> wire.Sampling:
    unknown = set(options) - set(ChatOptions.__annotations__)
    if unknown:
        name = sorted(unknown)[0]
        raise InputError("there is no such option", field=name, remedy="see ChatOptions for those there are")
    for key in ("timeout_s", "wait_until_ready"):
        _check_seconds(options.get(key), key)
    values: dict[str, Any] = {k: options[k] for k in wire.Sampling.model_fields if k in options}  # type: ignore[literal-required]
    if "stop" in values:
        stop = values["stop"]
        values["stop"] = list(stop) if isinstance(stop, list | tuple) else [stop]
    for key in ("temperature", "top_p"):
        if type(values.get(key)) is int:
            values[key] = float(values[key])
    return checked(wire.Sampling, values)


def _named(options: ChatOptions) -> dict[str, str]:
    """The model by its name, which only an adapter needs: an endpoint serves one model."""
    if (adapter := options.get("adapter")) is None:
        return {}
    return {"model": f"medgemma+{text(adapter, 'adapter')}"}


def _check_seconds(value: object, field: str) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError("must be a number of seconds above 0", field=field, remedy="leave it out for the default")


def text(value: str, field: str, *, blank: bool = False) -> str:
    """``value``, if it is text that can be sent, and not blank unless that is allowed.

    Raises:
        InputError: it is no string, blank, or holds half a surrogate pair, which no encoding can carry.
    """
    if not isinstance(value, str):
        raise InputError("must be text", field=field, remedy="give a string")
    if not blank and not value.strip():
        raise InputError("is empty", field=field, remedy="give some words")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(
                "holds half a surrogate pair", field=field, remedy="decode the text as what it is, such as UTF-16"
            ) from None
    return value


def _messages(prompt: Prompt, images: Sequence[im.Source], options: ChatOptions) -> list[dict[str, Any]]:
    if not isinstance(prompt, str | list | tuple):
        raise InputError("must be text or a list of messages", field="prompt", remedy="ask something")
    if isinstance(prompt, str):
        messages: list[dict[str, Any]] = [{"role": "user", "content": text(prompt, "prompt")}]
    else:
        messages = [_message(i, m) for i, m in enumerate(prompt)]
        if not messages:
            raise InputError("there are no messages", field="prompt", remedy="give at least one user message")
    if images:
        _attach(messages, images)
    _add_system(messages, options)
    return messages


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    at = f"messages[{index}]"
    if not isinstance(message, Mapping) or message.get("role") not in ("system", "user", "assistant"):
        raise InputError(
            "the role must be system, user or assistant",
            field=f"{at}.role",
            remedy='{"role": "user", "content": …}',
        )
    content = message.get("content")
    if isinstance(content, str):
        return {"role": message["role"], "content": text(content, f"{at}.content")}
    if not isinstance(content, Sequence) or not content:
        raise InputError(
            "must be text or a list of texts and images", field=f"{at}.content", remedy="give at least one"
        )
    return {"role": message["role"], "content": [_part(f"{at}.content[{i}]", p) for i, p in enumerate(content)]}


def _part(at: str, part: object) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": text(part, at, blank=True)}
    if not isinstance(part, Mapping):
        return _image_part(part, at)  # type: ignore[arg-type]
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": text(part["text"], at, blank=True)}
    if kind == "image":
        return _image_part(part.get("image"), at)  # type: ignore[arg-type]
    if kind == "image_url" and isinstance(part.get("image_url"), Mapping):
        url = part["image_url"].get("url")
        # Messages in this form are often handed on from elsewhere: a path in them must not open a file here.
        if not im.is_remote(url) and not im.is_data_url(url):
            raise ImageError(
                "is not a URL", field=at, remedy='give a data: URL, or a file as {"type": "image", …}'
            )
        return _image_part(url, at)
    raise InputError(
        "is neither text nor an image",
        field=at,
        remedy="give text, an image, or a dict of type text, image, image_url",
    )


def _image_part(source: im.Source, at: str) -> dict[str, Any]:
    url = source if im.is_remote(source) else prepared(source, at)
    return {"type": "image_url", "image_url": {"url": url}}


def _json(request: dict[str, Any]) -> Body:
    """The request as JSON, each image in it as its data URL.

    orjson leaves a gap for an image, marked by a zero byte, which no JSON holds: its megabytes need not be
    copied to be sent.
    """
    images: list[im.PreparedImage] = []

    def gap(image: im.PreparedImage) -> orjson.Fragment:
        images.append(image)
        return orjson.Fragment(b"\0")

    first, *rest = orjson.dumps(request, default=gap, option=orjson.OPT_PASSTHROUGH_DATACLASS).split(b"\0")
    parts: list[bytes | Base64] = [first]
    for image, after in zip(images, rest, strict=True):
        parts += [f'"data:{image.media_type};base64,'.encode(), Base64(image.data), b'"' + after]
    return Body(tuple(parts))


def prepared(source: im.Source | im.PreparedImage, field: str) -> im.PreparedImage:
    """The image as every backend takes it; one that is prepared already is taken as it is."""
    if isinstance(source, im.PreparedImage):
        return source
    return im.prepare(source if isinstance(source, im.Image) else im.load(source, field=field))


def as_list(images: object) -> list[Any]:
    """One source or several. Bytes, strings and arrays are one source each."""
    if isinstance(images, list | tuple):
        return list(images)
    return [images]


def _attach(messages: list[dict[str, Any]], images: Sequence[im.Source]) -> None:
    """Images go before the text of the last user message: the order of the models' own examples."""
    last = next((m for m in reversed(messages) if m["role"] == "user"), None)
    if last is None:
        raise InputError("there is no user message for the images", field="images", remedy="add one")
    parts = [_image_part(source, f"images[{i}]") for i, source in enumerate(images)]
    content = last["content"]
    last["content"] = [*parts, *([{"type": "text", "text": content}] if isinstance(content, str) else content)]


def _add_system(messages: list[dict[str, Any]], options: ChatOptions) -> None:
    system = options.get("system") or ""
    if system:
        text(system, "system")
    if messages[0]["role"] == "system":
        if system:
            raise InputError("the system text is given twice", field="system", remedy="give it once")
        first = messages.pop(0)["content"]
        system = first if isinstance(first, str) else "".join(p.get("text", "") for p in first)
    if options.get("thinking"):
        system = THINK + system
    if system:
        messages.insert(0, {"role": "system", "content": system})


def _read(reply: Reply, provenance: Provenance) -> Chat:
    answer = wire.read_answer(reply.json())
    thinking, text = split(answer.text)
    return chat(text, thinking, answer.finish_reason, answer.usage, provenance)


def chat(
    text: str,
    thinking: str | None,
    finish_reason: wire.FinishReason | None,
    usage: wire.Usage | None,
    provenance: Provenance,
) -> Chat:
    """The typed result of a whole answer or of a finished stream."""
    counts = Usage(**usage.model_dump()) if usage else Usage()
    return Chat(text, thinking, finish_reason, counts, provenance)


def split(answer: str) -> tuple[str | None, str]:
    """Thinking and text. A thought cut before its end mark stays thought: the text is then empty."""
    before, end, after = answer.partition(_END)
    if _BEGIN in before or end:
        thought = before.partition(_BEGIN)[2] if _BEGIN in before else before
        return thought.removeprefix(_HEAD).strip(), after.strip()
    return None, answer.strip()


class Splitter:
    """The same for a stream: text comes in cut anywhere, deltas go out as soon as their kind is certain."""

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"

    def feed(self, text: str) -> list[Delta]:
        self._held += text
        deltas: list[Delta] = []
        if self._state == "start":
            opening = _BEGIN + _HEAD
            if self._held.startswith(opening):
                self._held, self._state = self._held[len(opening) :], "thinking"
            elif not opening.startswith(self._held):
                self._state = "text"
        if self._state == "thinking":
            thought, end, after = self._held.partition(_END)
            keep = 0 if end else _overlap(thought, _END)
            self._held = after if end else thought[len(thought) - keep :]
            thought = thought[: len(thought) - keep]
            if thought:
                deltas.append(Delta(thinking=thought))
            if end:
                self._state = "text"
        if self._state == "text" and self._held:
            deltas.append(Delta(text=self._held))
            self._held = ""
        return deltas

    def close(self) -> list[Delta]:
        """What was held back when the stream ended."""
        rest, self._held = self._held, ""
        if not rest:
            return []
        return [Delta(thinking=rest) if self._state == "thinking" else Delta(text=rest)]


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that could be the beginning of ``mark``."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


class Collector:
    """Stream events in, deltas out, and at the end the whole result."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._text: list[str] = []
        self._thinking: list[str] = []
        self.finish_reason: wire.FinishReason | None = None
        self.usage: wire.Usage | None = None

    def take(self, event: bytes) -> list[Delta]:
        """Read one event.

        Raises:
            ProtocolError: it is not a JSON chunk.
            MedportError: it reports an error.
        """
        try:
            piece = wire.read_piece(orjson.loads(event))
        except orjson.JSONDecodeError:
            raise ProtocolError("a stream event is not JSON", remedy="check the URL") from None
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage
        return self._note(self._splitter.feed(piece.text))

    def end(self) -> list[Delta]:
        return self._note(self._splitter.close())

    def result(self, provenance: Provenance) -> Chat:
        thinking = "".join(self._thinking).strip() if self._thinking else None
        return chat("".join(self._text).strip(), thinking, self.finish_reason, self.usage, provenance)

    def _note(self, deltas: list[Delta]) -> list[Delta]:
        self._text += [d.text for d in deltas if d.text]
        self._thinking += [d.thinking for d in deltas if d.thinking]
        return deltas
