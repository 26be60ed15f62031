"""An endpoint resource as a caller without a client library sees it, and what it is sent."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
from PIL import Image

ROOT = "projects/local/locations/europe-west4"
Answer = dict[str, Any]


class Endpoint:
    """One endpoint resource."""

    def __init__(self, http: httpx.Client, name: str) -> None:
        self.http = http
        self.name = name
        self.path = f"/v1/{ROOT}/endpoints/{name}"

    def post(self, verb: str, body: object, **options: Any) -> httpx.Response:
        return self.http.post(f"{self.path}{verb}", json=body, **options)

    def predict(self, *instances: object) -> Any:
        """What stands in ``predictions``."""
        answer = self.post(":predict", {"instances": list(instances)})
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"]

    def refused(self, *instances: object) -> Answer:
        """The error of a request that is refused."""
        answer = self.post(":predict", {"instances": list(instances)})
        assert answer.status_code == 400, answer.text
        error: Answer = answer.json()["error"]
        return error


def png(side: int = 64, *, seed: int = 0, width: int | None = None) -> bytes:
    """A picture that is no other seed's."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, width or side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{b64(data)}"


def text(content: object = "Describe this X-ray.", **options: object) -> Answer:
    """A chat of one message, as an instance."""
    return {
        "@requestFormat": "chatCompletions",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 12,
        **options,
    }


def picture(url: str) -> Answer:
    """A content part of the OpenAI form."""
    return {"type": "image_url", "image_url": {"url": url}}


def said(completion: Answer) -> str:
    """The first answer's text."""
    content: str = completion["choices"][0]["message"]["content"]
    return content


def events(response: httpx.Response) -> list[str]:
    """The data of each server-sent event."""
    return [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
