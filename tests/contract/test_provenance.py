"""Every result says which bytes gave it, and that it is preliminary."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from medport import lock as locks

from .conftest import IMAGE_DIGEST, PARENT, QUESTION, Asked

Ask = Callable[[Asked, Any], Any]

VERBS: dict[str, tuple[str, Ask]] = {
    "chat": ("medgemma", lambda client, image: client.chat(QUESTION, image, max_tokens=4, top_k=5)),
    "stream": ("medgemma", lambda client, image: _streamed(client, image)),
    "embed_images": ("medsiglip", lambda client, image: client.embed_images(image)),
    "embed_texts": ("medsiglip", lambda client, image: client.embed_texts("normal")),
    "classify": ("medsiglip", lambda client, image: client.classify(image, ["normal"])),
    "classify, one image": ("medsiglip", lambda client, image: client.classify(image, ["normal"])[0]),
}


def _streamed(client: Asked, image: Any) -> Any:
    with client.stream(QUESTION, image, max_tokens=4, top_k=5) as stream:
        list(stream)
    return stream.result


@pytest.mark.parametrize("verb", VERBS)
def test_provenance_is_complete(
    client: Asked, drawings: list[Any], snapshots: dict[str, Path], lock_file: Path, verb: str
) -> None:
    family, ask = VERBS[verb]
    manifest = orjson.loads((snapshots[family] / "manifest.json").read_bytes())

    result = ask(client, drawings[0])

    source = result.provenance
    assert source.model_id == manifest["repo_id"]
    assert source.revision == manifest["revision"]
    assert source.snapshot_sha256 == manifest["snapshot_sha256"]
    assert source.model_notice == manifest["notice"]
    assert re.fullmatch(r"projects/[^/]+/locations/[^/]+/endpoints/[^/]+", source.endpoint)
    assert source.deployed_model_id
    assert source.backend == source.kind == client.place.name
    assert source.attempts == 1
    assert source.latency_ms > 0
    assert source.time.endswith("+00:00")
    assert source.sdk_version
    assert (source.request_id is not None) == client.place.capabilities.request_ids
    assert source.image_digest == IMAGE_DIGEST
    assert source.lock_id == locks.read(lock_file).lock_id
    assert source.parent == f"medport/elder@unpinned sha256:{PARENT['snapshot_sha256']}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_result_is_preliminary_and_says_so(client: Asked, drawings: list[Any], verb: str) -> None:
    result = VERBS[verb][1](client, drawings[0])

    assert result.preliminary is True
    assert "verification" in result.notice
    assert result.notice in result.provenance.line()
    as_json = orjson.loads(orjson.dumps(result.to_dict()))
    assert as_json["preliminary"] is True
    assert as_json["notice"] == result.notice
    pins = ("model_id", "revision", "snapshot_sha256", "parent", "lock_id", "image_digest", "deployed_model_id")
    assert {pin: as_json["provenance"][pin] for pin in pins} == {
        pin: getattr(result.provenance, pin) for pin in pins
    }
    assert all(as_json["provenance"][pin] for pin in pins)
    assert result.notice in str(result) or verb == "classify"


def test_sampling_is_recorded_as_it_was_sent(client: Asked, drawings: list[Any]) -> None:
    result = client.chat(QUESTION, drawings[0], max_tokens=4, temperature=0.5, top_p=0.9, seed=3, stop=["x"])

    assert dict(result.provenance.sampling) == {
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x"],
    }


def test_two_requests_have_two_ids(client: Asked) -> None:
    ids = [client.embed_texts("normal").provenance.request_id for _ in range(2)]

    assert (ids[0] != ids[1]) == client.place.capabilities.request_ids


def test_an_error_names_the_backend_and_the_attempts(client: Asked) -> None:
    from medport import InputError

    with pytest.raises(InputError) as caught:
        client.chat([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])

    assert caught.value.backend == client.place.name
    assert caught.value.attempts == 1
    assert (caught.value.request_id is not None) == client.place.capabilities.request_ids
