"""Asking a fleet something: through its endpoint, as every caller does, or straight, whatever share it has.

Both ways answer alike, and say which deployed model answered and which bytes that has, as far as the target tells.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt

import medport
from medport import config, images
from medport.errors import ConfigError, ConnectionFailed, ProtocolError, Timeout
from medport.lock import LockedModel
from medport.results import Provenance
from medport.wire import chat, sse
from medport.wire.vertex import DEPLOYED_MODEL_HEADER, Pins, error_from, pins_from_headers
from medport_deploy.control.credentials import from_variable
from medport_deploy.spec.reading import Spec
from medport_deploy.spec.values import is_googles
from medport_deploy.trial.smoke_inputs import Case

THOUGHT = "<unused94>"
"""What MedGemma begins a thought with. Source: MedGemma notebooks, quick start."""
_GOOGLES_DNS = "prediction.vertexai.goog"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    pins: Pins
    deployed_model_id: str | None
    """``None``: the target does not say."""
    latency_ms: float
    text: str | None = None
    """Of a chat."""
    thought: bool = False
    """Whether it thought aloud, which it was not asked to."""
    finish_reason: str | None = None
    streamed: bool = False
    vectors: npt.NDArray[np.float32] | None = None
    """Of an embedding, ``[n, d]``."""


class Door(Protocol):
    """A way to a fleet."""

    def ask(self, case: Case) -> Answer:
        """Send a case, once. Raises what ``medport.Client`` raises."""
        ...


class ThroughEndpoint:
    """By ``medport.Client``, which sends nothing twice. A context manager.

    It looks the endpoint up at its first request and keeps what it found: make a new one when a fleet was added.
    Vectors come as the SDK gives them, which makes them of length one.

    Args:
        name: of the model in the specification.
        timeout_s: for one request.

    Raises:
        ConfigError: the credential's variable is not set.
    """

    def __init__(self, spec: Spec, model: LockedModel, name: str, *, timeout_s: float) -> None:
        settings = {**_settings(spec), model.family: {"endpoint": spec.endpoint_id(name)}}
        # A profile of this machine is for its callers, not for what is deployed.
        self._client = medport.Client(config.alone({**settings, "timeout_s": timeout_s, "max_attempts": 1}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def ask(self, case: Case) -> Answer:
        began = time.perf_counter()
        if not case.prompt:
            found = (
                self._client.embed_texts(case.texts)
                if case.texts
                else self._client.embed_images(list(case.images))
            )
            if found.errors:
                raise next(iter(found.errors.values()))
            return _answer(found.provenance, began, vectors=found.vectors)
        if case.streams:
            with self._client.chat_stream(case.prompt, list(case.images), max_tokens=case.max_tokens) as stream:
                for _ in stream:
                    pass
            answer, streamed = stream.result, stream.streamed
        else:
            answer = self._client.chat(case.prompt, list(case.images), max_tokens=case.max_tokens)
            streamed = False
        return _answer(
            answer.provenance,
            began,
            text=answer.text,
            thought=answer.thinking is not None,
            finish_reason=answer.finish_reason,
            streamed=streamed,
        )


class Straight:
    """At one deployed model of a local control plane, by ``…/deployedModels/ID/invoke/…``. A context manager.

    Args:
        name: of the model in the specification.
        timeout_s: for one request.

    Raises:
        ConfigError: the credential's variable is not set, or the file of the authority cannot be read.
    """

    def __init__(self, spec: Spec, name: str, deployed_model_id: str, *, timeout_s: float) -> None:
        target = spec.target
        place = f"projects/{target.project}/locations/{target.location}/endpoints/{spec.endpoint_id(name)}"
        key = from_variable(target.auth.api_key_env)() if target.auth.api_key_env else None
        self._client = httpx.Client(
            base_url=f"{target.url}/v1/{place}/deployedModels/{deployed_model_id}/invoke/",
            verify=_trusted(target.ca_file),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_s,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def ask(self, case: Case) -> Answer:
        began = time.perf_counter()
        if not case.prompt:
            reply = self._posted("predict", {"instances": _instances(case)})
            return _told(reply, began, vectors=_vectors(_json(reply.content), case.items))
        reply = self._posted("v1/chat/completions", _chat(case))
        if case.streams:
            streamed = reply.headers.get("content-type", "").startswith("text/event-stream")
            read = _whole(reply.content) if streamed else chat.read_answer(_json(reply.content))
        else:
            streamed, read = False, chat.read_answer(_json(reply.content))
        thought, text = THOUGHT in read.text, read.text.strip()
        return _told(reply, began, text=text, thought=thought, finish_reason=read.finish_reason, streamed=streamed)

    def _posted(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            reply = self._client.post(path, json=body)
        except httpx.TimeoutException:
            raise Timeout("no answer came in time", field="target.url") from None
        except httpx.HTTPError as fault:
            raise ConnectionFailed(
                f"the server cannot be reached ({type(fault).__name__})", field="target.url"
            ) from fault
        if reply.status_code != 200:
            raise error_from(reply.status_code, reply.content)
        return reply


def _settings(spec: Spec) -> dict[str, Any]:
    target = spec.target
    if target.kind == "local":
        key = from_variable(target.auth.api_key_env)() if target.auth.api_key_env else None
        kind = {"backend": "local", "url": target.url, "api_key": key}
    else:
        kind = {"backend": "vertex", "api_endpoint": target.url}
        if target.auth.credentials_file:
            kind["auth"] = {"credentials_file": target.auth.credentials_file}  # type: ignore[assignment]
        if target.url and is_googles(target.url) and not target.url.endswith(".googleapis.com"):
            # A stand-in on this machine gives its own address as that of its endpoints.
            kind["dns_suffixes"] = (_GOOGLES_DNS, urlsplit(target.url).hostname)  # type: ignore[assignment]
    return {"project": target.project, "location": target.location, "ca_file": target.ca_file, **kind}


def _answer(source: Provenance, began: float, **more: Any) -> Answer:
    pins = Pins(source.model_id, source.revision, source.image_digest, source.snapshot_sha256, source.lock_id)
    return Answer(pins, source.deployed_model_id, (time.perf_counter() - began) * 1e3, **more)


def _told(reply: httpx.Response, began: float, **more: Any) -> Answer:
    pins = pins_from_headers({key.lower(): value for key, value in reply.headers.items()}, Pins())
    return Answer(pins, reply.headers.get(DEPLOYED_MODEL_HEADER), (time.perf_counter() - began) * 1e3, **more)


def _chat(case: Case) -> dict[str, Any]:
    parts: list[chat.TextPart | chat.ImagePart] = [
        chat.ImagePart(image_url=chat.ImageUrl(url=f"data:{image.media_type};base64,{image.base64}"))
        for image in map(_prepared, case.images)
    ]
    message = chat.Message(
        role="user", content=[*parts, chat.TextPart(text=case.prompt)] if parts else case.prompt
    )
    return {
        "messages": [message.model_dump()],
        "max_tokens": case.max_tokens,
        "temperature": 0.0,
        "stream": case.streams,
    }


def _instances(case: Case) -> list[dict[str, Any]]:
    pictures = [{"image": {"input_bytes": _prepared(each).base64}} for each in case.images]
    return [*({"text": each} for each in case.texts), *pictures]


def _prepared(data: bytes) -> images.PreparedImage:
    return images.prepare(images.load(data))


def _whole(stream: bytes) -> chat.Answer:
    decoder = sse.Decoder()
    events = [each for each in decoder.feed(stream) if each != sse.DONE]
    pieces = [chat.read_piece(_json(each)) for each in events]
    ends = [each.finish_reason for each in pieces if each.finish_reason]
    return chat.Answer("".join(each.text for each in pieces), ends[-1] if ends else None, chat.Usage())


def _vectors(body: Any, count: int) -> npt.NDArray[np.float32]:
    try:
        rows = [each["embedding"] for each in body["predictions"]]
        found = np.array(rows, np.float32)
    except (KeyError, TypeError, ValueError):
        raise ProtocolError("the answer holds no embeddings of one length", field="predictions") from None
    if found.ndim != 2 or len(found) != count:
        raise ProtocolError("there is not one embedding for each input", field="predictions")
    return found


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise ProtocolError("the answer is not JSON") from None


def _trusted(ca_file: str | None) -> Any:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as fault:
        raise ConfigError(
            f"the certificate file cannot be read ({os.strerror(fault.errno or 0)})", field="target.ca_file"
        ) from fault
