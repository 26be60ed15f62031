"""The chat request, reply and stream chunk: the OpenAI form that both MedGemma containers document.

The client writes one form only. ``:predict`` carries it as ``{"instances": [{"@requestFormat":
"chatCompletions", …}]}``; ``…/chat/completions`` carries it bare, and streams. The reader takes every form of
reply that was seen from a serving container.

Source: Google-Health/medgemma, notebooks/quick_start_with_model_garden.ipynb; OpenAI API reference, Chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from medport.errors import InputError, ProtocolError
from medport.wire import Deferred, Whole
from medport.wire.vertex import error_in_body

REQUEST_FORMAT = "chatCompletions"
DEFAULT_MAX_TOKENS = 1024
MAX_TOKENS_LIMIT = 131_072
"""No MedGemma has a longer context than 128 K tokens, so no answer can be longer (model card)."""

MAX_CHOICES = 16
"""The most answers to one prompt (``n``): each costs a sequence of its own."""
MAX_TOP_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024
MAX_MESSAGES = 2048
MAX_PARTS = 2048
"""Of one message. A CT prompt of the published notebooks has 172."""

Role = Literal["system", "user", "assistant"]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
FinishReason = Literal["stop", "length", "content_filter"]


class Sampling(Deferred):
    """How tokens are chosen. ``temperature`` 0, the default, is greedy."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)] = DEFAULT_MAX_TOKENS
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = -1
    """-1 and 0 both mean all tokens, as in vLLM."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16, default_factory=list)
    ]


class TextPart(Deferred):
    type: Literal["text"] = "text"
    text: str


class ImageUrl(Deferred):
    url: str


class ImagePart(Deferred):
    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Deferred):
    role: Role
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS)]


class StreamOptions(Deferred):
    include_usage: bool = False


class TextFormat(Deferred):
    type: Literal["text"]


class JsonFormat(Deferred):
    type: Literal["json_object"]


class JsonSchema(Deferred):
    """A named schema. ``strict`` is always so here: the answer cannot be anything else."""

    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Deferred):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


def _listed(stop: object) -> object:
    return [stop] * bool(stop) if isinstance(stop, str) else stop


class Generation(Sampling):
    """How tokens are chosen, with all that the serving containers take beyond ``Sampling``.

    The server's side only: names and ranges are vLLM's and OpenAI's.
    """

    max_tokens: Annotated[Whole, Field(ge=1, le=MAX_TOKENS_LIMIT)] = DEFAULT_MAX_TOKENS
    top_k: Annotated[Whole, Field(ge=-1, le=1_000_000)] = -1
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] = 1
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1.0
    min_tokens: Annotated[Whole, Field(ge=0, le=MAX_TOKENS_LIMIT)] = 0
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=16, default_factory=list)]
    """One text may stand for a list of one."""
    stop_token_ids: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=64, default_factory=list)]

    def check(self) -> None:
        """What no field can check alone.

        Raises:
            InputError: names the field.
        """
        if self.min_tokens > self.max_tokens:
            raise InputError("is above max_tokens", field="min_tokens", remedy="lower it")


class ChatRequest(Generation):
    """One chat request as the server reads it. Unknown keys are ignored, as the OpenAI form expects."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model: str = ""
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    logit_bias: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^\d{1,7}$")],
            Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
        ],
        Field(max_length=MAX_BIASED_TOKENS, default_factory=dict),
    ]
    response_format: ResponseFormat | None = None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InputError("needs logprobs: true", field="top_logprobs", remedy="set both, or neither")


class TopLogprob(Deferred):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """One generated token: its text, its logprob (natural, of the model's own distribution), the likeliest."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class Logprobs(Deferred):
    content: list[TokenLogprob] = Field(default_factory=list)


class ReplyMessage(Deferred):
    role: Literal["assistant"] = "assistant"
    content: str = ""


class Choice(Deferred):
    index: int = 0
    message: ReplyMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class Usage(Deferred):
    """Token counts. An image counts as the soft tokens it becomes (256 in MedGemma)."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatReply(Deferred):
    id: str = ""
    object: Literal["chat.completion"] = "chat.completion"
    created: int = 0
    model: str = ""
    choices: list[Choice]
    usage: Usage = Field(default_factory=Usage)


class ChunkDelta(Deferred):
    role: Literal["assistant"] | None = None
    content: str = ""
    """Always present: Google's own notebook reads it from every chunk."""


class ChunkChoice(Deferred):
    index: int = 0
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Deferred):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice]
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client needs of a reply, whatever form it came in."""

    text: str
    finish_reason: FinishReason | None
    usage: Usage
    id: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What the client needs of one stream chunk."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    id: str = ""


def read_answer(body: object) -> Answer:
    """Read a chat reply: Vertex's envelope or bare, ``predictions`` an object, a list, or strings.

    Raises:
        MedportError: the body reports an error, even under HTTP 200 (the "dicom" container does so).
        ProtocolError: the body holds no answer.
    """
    error_in_body(body)
    if isinstance(body, Mapping) and "predictions" in body:
        body = body["predictions"]
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    error_in_body(body)
    if isinstance(body, str):
        return Answer(text=_without_echo(body), finish_reason=None, usage=Usage())
    choice = _first_choice(body)
    message = choice.get("message")
    text = _text_of(message.get("content")) if isinstance(message, Mapping) else None
    if text is None:
        raise ProtocolError("the reply's first choice holds no message text", field="choices[0].message")
    assert isinstance(body, Mapping)
    return Answer(
        text=text, finish_reason=_finish(choice), usage=_usage(body) or Usage(), id=str(body.get("id") or "")
    )


def read_piece(body: object) -> Piece:
    """Read one stream chunk, or a whole completion where a server does not stream.

    Raises:
        MedportError: the chunk reports an error that came up in mid-stream.
        ProtocolError: the chunk cannot be read.
    """
    error_in_body(body)
    if not isinstance(body, Mapping):
        raise ProtocolError("a stream chunk is not a JSON object")
    identity = str(body.get("id") or "")
    if body.get("choices") == []:  # the usage-only chunk of stream_options.include_usage
        return Piece(usage=_usage(body), id=identity)
    choice = _first_choice(body)
    delta = choice.get("delta", choice.get("message"))
    text = _text_of(delta.get("content")) if isinstance(delta, Mapping) else None
    return Piece(text=text or "", finish_reason=_finish(choice), usage=_usage(body), id=identity)


def _first_choice(body: object) -> Mapping[str, Any]:
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise ProtocolError(
            "the answer holds no choices",
            field="choices",
            remedy="check that the endpoint serves MedGemma by the chatCompletions format",
        )
    return choices[0]


def _text_of(content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    return None


def _finish(choice: Mapping[str, Any]) -> FinishReason | None:
    reason = choice.get("finish_reason")
    return reason if reason in ("stop", "length", "content_filter") else None


def _usage(body: Mapping[str, Any]) -> Usage | None:
    usage = body.get("usage")
    if not isinstance(usage, Mapping):
        return None
    counts = {k: v for k in Usage.model_fields if isinstance(v := usage.get(k), int)}
    return Usage(**counts)


def _without_echo(text: str) -> str:
    """A raw-prompt answer repeats the prompt unless ``raw_response`` was asked for."""
    if text.startswith("Prompt:\n"):
        return text.partition("\nOutput:\n")[2]
    return text
