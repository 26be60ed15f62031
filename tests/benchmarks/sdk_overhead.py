"""How much does medport add to the bytes' own way, and how does it stand beside the other clients?

Loopback TLS to a server that answers at once. "httpx, ready bytes" sends what medport would send, serialised
before, and reads the body: the least that can be done over this HTTP library. medport runs with all it does:
a service account's token, checks, retries, provenance. Its image is prepared before, as the bytes are; "raw" is
a PNG file that is decoded and checked at every call. aiplatform and openai are given the data URL ready-made.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable
from io import BytesIO
from typing import Any

import canned
import harness
import httpx
import numpy as np
import orjson
from PIL import Image

import medport
from medport import images
from medport.tasks import chat as chat_task

PROMPT = "Is there a pneumothorax?"
TEXTS = [f"a chest X-ray with finding number {i}" for i in range(canned.ITEMS)]
HEADERS = {"authorization": "Bearer token", "content-type": "application/json"}
HTTPX, MEDPORT = "httpx, ready bytes", "medport"
Cases = dict[str, Callable[[], object]]


def main() -> None:
    given = harness.arguments(__doc__, rounds=300)
    with canned.serving() as server:
        os.environ |= {"REQUESTS_CA_BUNDLE": server.ca_file, "SSL_CERT_FILE": server.ca_file}
        context = ssl.create_default_context(cafile=server.ca_file)
        with medport.Client(**server.profile()) as client, httpx.Client(verify=context, timeout=600) as bare:
            found = [
                _measured("short chat", _short(server, client, bare), given.rounds),
                _measured("chat, 2 MB image", _image(server, client, bare), max(20, given.rounds // 5)),
                _measured("64 embeddings", _embeddings(server, client, bare), max(20, given.rounds // 4)),
            ]
    table = [row for rows, _ in found for row in rows]
    harness.report(__doc__, table, given.json, notes=[note for _, note in found])


def _measured(what: str, cases: Cases, rounds: int) -> tuple[list[harness.Row], str]:
    samples = harness.alternate(cases, rounds, warm_up=10)
    by_medport = harness.rows(what, samples, MEDPORT)
    note = ", ".join(f"{row.how} {row.ratio:.2f}" for row in by_medport if row.how != MEDPORT)
    return harness.rows(what, samples, HTTPX), f"{what}, as a multiple of medport: {note}"


def _short(server: canned.Server, client: medport.Client, bare: httpx.Client) -> Cases:
    body = b"".join(chat_task.call(PROMPT, (), {}, stream=False).body)
    messages = [{"role": "user", "content": PROMPT}]
    return {
        HTTPX: _bare(bare, server.predict_url(canned.CHAT), body),
        MEDPORT: lambda: client.chat(PROMPT),
        **_rivals(server, messages),
    }


def _image(server: canned.Server, client: medport.Client, bare: httpx.Client) -> Cases:
    png = png_2mb()
    ready = images.prepare(images.load(png))
    assert ready.data == png
    body = b"".join(chat_task.call(PROMPT, ready, {}, stream=False).body)
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT}]
    return {
        HTTPX: _bare(bare, server.predict_url(canned.CHAT), body),
        "httpx, base64 and orjson at each call": lambda: _post_image(bare, server, png),
        MEDPORT: lambda: client.chat(PROMPT, ready),
        "medport, raw": lambda: client.chat(PROMPT, png),
        **_rivals(server, [{"role": "user", "content": content}]),
    }


def _embeddings(server: canned.Server, client: medport.Client, bare: httpx.Client) -> Cases:
    body = orjson.dumps({"instances": [{"text": text} for text in TEXTS]})
    post = _bare(bare, server.predict_url(canned.EMBED), body)
    endpoint = aiplatform_endpoint(server, canned.EMBED)
    instances = [{"text": text} for text in TEXTS]
    return {
        HTTPX: post,
        "httpx, ready bytes, orjson, numpy": lambda: _vectors(orjson.loads(post())["predictions"]),
        MEDPORT: lambda: client.embed_texts(TEXTS),
        "aiplatform predict": lambda: endpoint.predict(instances=instances),
        "aiplatform predict, numpy": lambda: _vectors(endpoint.predict(instances=instances).predictions),
    }


def _bare(bare: httpx.Client, url: str, body: bytes) -> Callable[[], bytes]:
    return lambda: bare.post(url, content=body, headers=HEADERS).content


def _post_image(bare: httpx.Client, server: canned.Server, png: bytes) -> object:
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT}]
    instance = {"@requestFormat": "chatCompletions", "messages": [{"role": "user", "content": content}]}
    body = orjson.dumps({"instances": [instance]})
    return bare.post(server.predict_url(canned.CHAT), content=body, headers=HEADERS).content


def _vectors(predictions: list[dict[str, Any]]) -> object:
    return np.asarray([p["embedding"] for p in predictions], np.float32)


def _rivals(server: canned.Server, messages: list[dict[str, Any]]) -> Cases:
    import openai

    endpoint = aiplatform_endpoint(server, canned.CHAT)
    instance = {
        "@requestFormat": "chatCompletions", "messages": messages, "max_tokens": 1024, "temperature": 0.0,
    }  # fmt: skip
    base = f"{server.url}/v1beta1/{canned.PARENT}/endpoints/{canned.CHAT}"
    chats = openai.OpenAI(api_key="token", base_url=base).chat.completions
    return {
        "aiplatform predict": lambda: endpoint.predict(instances=[instance]),
        "openai": lambda: chats.create(model="", messages=messages, max_tokens=1024, temperature=0.0),  # type: ignore[arg-type]
    }


def aiplatform_endpoint(server: canned.Server, endpoint: str) -> Any:
    from google.cloud import aiplatform
    from google.oauth2 import service_account

    scope = "https://www.googleapis.com/auth/cloud-platform"
    credentials = service_account.Credentials.from_service_account_file(server.credentials_file, scopes=[scope])
    aiplatform.init(
        project=canned.PROJECT,
        location=canned.LOCATION,
        api_endpoint=server.url,
        api_transport="rest",
        credentials=credentials,
    )
    return aiplatform.Endpoint(endpoint)


def png_2mb() -> bytes:
    """Noise, so that its size is that of its pixels; square and small enough to be sent as it is."""
    pixels = np.random.default_rng(7).integers(0, 256, (1448, 1448), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


if __name__ == "__main__":
    main()
