"""``client.openai()``: OpenAI's own classes, against each backend, with our TLS, sockets and credentials."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.certificates import Authority
from support.faults import Answer
from support.vertex import PARENT, TEXT, Vertex, chat_completion, failure, reply

import medport
from medport.errors import ConfigError, PolicyError

pytest.importorskip("torch")

from medport_local import app as local_app

KEY = "openai-test-key-7a"
ASK: list[Any] = [{"role": "user", "content": "Describe this chest radiograph."}]


@pytest.fixture(scope="module")
def local(authority: Authority) -> Iterator[dict[str, Any]]:
    """A local server of two phantoms over TLS, with a key."""
    certificate = authority.issue("medport.test")  # not the name by which it is reached
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = local_app.Settings(api_key=KEY, advertised=f"localhost:{port}", drain_s=1)
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def serve() -> None:
        try:
            tls = local_app.Tls(certificate.certificate, certificate.key)
            await local_app.serve(settings, listener, stop=stop, on_ready=lambda _: ready.set(), tls=tls)
        finally:
            ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(120)
    try:
        yield {
            "backend": "local",
            "url": f"https://127.0.0.1:{port}",
            "server_name": "medport.test",
            "api_key": KEY,
            "ca_file": str(authority.ca_file),
        }
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(params=["in-process", "local"])
def real(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of a backend with a model behind it."""
    if request.param == "in-process":
        return {"backend": "in-process"}
    settings: dict[str, Any] = request.getfixturevalue("local")
    return settings


def streamed(answer: str) -> Answer:
    chunks = [{**chat_completion(""), "object": "chat.completion.chunk", "choices": [_choice(t)]} for t in answer]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return Answer(200, body.encode(), {"content-type": "text/event-stream"})


def _choice(text: str) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": text}, "finish_reason": None}


def completion(text: str = TEXT) -> Callable[[Any], Answer]:
    return lambda _: reply(chat_completion(text))


def test_the_blocking_client_answers_and_streams_as_our_own_verbs_do(real: dict[str, Any]) -> None:
    with medport.Client(**real) as client:
        ours = client.chat("Describe this chest radiograph.", temperature=0).text
        theirs = client.openai()

        whole = theirs.chat.completions.create(model="", messages=ASK, max_completion_tokens=64, temperature=0)
        chunks = theirs.chat.completions.create(model="", messages=ASK, temperature=0, stream=True)

        assert type(theirs) is openai.OpenAI
        assert whole.choices[0].message.content == ours
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ours


def test_the_async_client_answers_and_streams_as_our_own_verbs_do(real: dict[str, Any]) -> None:
    async def ask() -> None:
        async with medport.AsyncClient(**real) as client:
            theirs = client.openai()
            whole = await theirs.chat.completions.create(model="", messages=ASK, temperature=0)
            chunks = await theirs.chat.completions.create(model="", messages=ASK, temperature=0, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
            ours = (await client.chat("Describe this chest radiograph.", temperature=0)).text

            assert type(theirs) is openai.AsyncOpenAI
            assert whole.choices[0].message.content == text == ours

    asyncio.run(ask())


def test_the_base_url_is_the_endpoint_resource(local: dict[str, Any], vertex: Vertex) -> None:
    with medport.Client(**local) as client:
        expected = f"{local['url']}/v1beta1/projects/local/locations/europe-west4/endpoints/medgemma/"
        assert str(client.openai().base_url) == expected
        assert client.openai().api_key == KEY

    with medport.Client(**vertex.settings()) as client:
        assert str(client.openai().base_url) == f"https://{vertex.data_host}/v1beta1/{PARENT}/endpoints/1001/"


def test_an_error_of_the_server_is_openais_own(local: dict[str, Any]) -> None:
    with medport.Client(**local, max_attempts=1) as client, pytest.raises(openai.BadRequestError):
        client.openai().chat.completions.create(model="", messages=ASK, temperature=-3)

    wrong = {**local, "api_key": "another-key"}
    with medport.Client(**wrong) as client, pytest.raises(medport.AuthError):
        client.openai()


def test_a_token_that_was_revoked_is_renewed_once(vertex: Vertex) -> None:
    with medport.Client(**vertex.settings()) as client:
        theirs = client.openai()
        vertex.script = [completion("first"), failure(401, "UNAUTHENTICATED", "revoked"), completion("second")]

        theirs.chat.completions.create(model="", messages=ASK)
        second = theirs.chat.completions.create(model="", messages=ASK)

    asked = vertex.asked("/chat/completions", plane="data")
    assert second.choices[0].message.content == "second"
    assert [request.token for request in asked] == ["ya29.token-1", "ya29.token-1", "ya29.token-2"]


def test_a_credential_that_stays_refused_is_openais_error(vertex: Vertex) -> None:
    with medport.Client(**vertex.settings()) as client:
        theirs = client.openai()
        vertex.script = [failure(401, "UNAUTHENTICATED", "no")] * 2
        with pytest.raises(openai.AuthenticationError):
            theirs.chat.completions.create(model="", messages=ASK)

    assert not vertex.script


def test_an_expired_token_is_replaced_before_the_async_request(vertex: Vertex) -> None:
    async def ask() -> None:
        async with medport.AsyncClient(**vertex.settings()) as client:
            theirs = client.openai()
            vertex.token_life_s = 1
            vertex.script = [completion("one"), streamed("two")]
            one = await theirs.chat.completions.create(model="", messages=ASK)
            await asyncio.sleep(1.1)
            two = await theirs.chat.completions.create(model="", messages=ASK, stream=True)
            assert one.choices[0].message.content == "one"
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in two]) == "two"

    asyncio.run(ask())

    first, second = [request.token for request in vertex.asked("/chat/completions", plane="data")]
    assert first != second
    assert (
        vertex.asked("/chat/completions", plane="data")[0].path
        == f"/v1beta1/{PARENT}/endpoints/1001/chat/completions"
    )


def test_a_redirect_is_not_followed(vertex: Vertex) -> None:
    elsewhere = f"{vertex.control_url}/v1beta1/{PARENT}/endpoints/1001/chat/completions"
    vertex.script = [Answer(307, b"", {"location": elsewhere})]
    with medport.Client(**vertex.settings()) as client:
        theirs = client.openai()
        with pytest.raises(openai.APIStatusError):
            theirs.chat.completions.create(model="", messages=ASK)

    assert not vertex.asked("/chat/completions", plane="control")


def test_nothing_is_sent_to_another_origin_even_when_told_to(vertex: Vertex) -> None:
    with medport.Client(**vertex.settings()) as client:
        theirs = client.openai()
        moved = theirs.with_options(base_url=vertex.control_url)
        with pytest.raises(PolicyError):
            moved.chat.completions.create(model="", messages=ASK)
        with pytest.raises(PolicyError):
            theirs.post(f"{vertex.control_url}/anything", cast_to=object)

    assert not vertex.asked("/anything")


def test_a_location_the_policy_forbids_is_refused(vertex: Vertex, tmp_path: Path) -> None:
    file = tmp_path / "medport.toml"
    file.write_text('[policy]\nallowed_locations = ["europe-west4"]\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDPORT_CONFIG", str(file))
        vertex.answers_as = "projects/123456789012/locations/us-central1/endpoints/"
        with medport.Client(**vertex.settings()) as client, pytest.raises(PolicyError):
            client.openai()

        async def ask() -> None:
            async with medport.AsyncClient(**vertex.settings()) as client:
                with pytest.raises(PolicyError):
                    await client.openai().chat.completions.create(model="", messages=ASK)

        asyncio.run(ask())

    assert not vertex.asked("/chat/completions")


def test_settings_meant_for_openai_do_not_reach_the_endpoint(vertex: Vertex) -> None:
    vertex.script = [completion()]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
            patch.setenv(name, "canary-8812")
        patch.setenv("OPENAI_BASE_URL", "https://canary-8812.example")
        with medport.Client(**vertex.settings()) as client:
            client.openai().chat.completions.create(model="", messages=ASK)

    (request,) = vertex.asked("/chat/completions")
    assert "canary-8812" not in str(request)


def test_retries_and_time_follow_the_profile(vertex: Vertex) -> None:
    vertex.script = [failure(503, "UNAVAILABLE", "later", headers={"retry-after": "0"})] * 2
    with medport.Client(**vertex.settings(), max_attempts=2, timeout_s=7) as client:
        theirs = client.openai()
        with pytest.raises(openai.InternalServerError):
            theirs.chat.completions.create(model="", messages=ASK)

    assert (theirs.max_retries, theirs.timeout) == (1, 7)
    assert len(vertex.asked("/chat/completions")) == 2


def test_a_server_that_is_gone_is_a_connection_error_of_openai(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = {"backend": "local", "url": f"http://127.0.0.1:{port}", "max_attempts": 1}

    async def ask() -> None:
        async with medport.AsyncClient(**settings) as client:
            with pytest.raises(openai.APIConnectionError):
                await client.openai().chat.completions.create(model="", messages=ASK)

    asyncio.run(ask())


def test_closing_ours_closes_theirs(local: dict[str, Any]) -> None:
    with medport.Client(**local) as client:
        theirs = client.openai()
    assert theirs.is_closed()

    async def ask() -> None:
        async with medport.AsyncClient(**local) as client:
            theirs = client.openai()
        assert theirs.is_closed()

    asyncio.run(ask())


def test_closing_theirs_leaves_ours(local: dict[str, Any]) -> None:
    with medport.Client(**local) as client:
        with client.openai() as theirs:
            theirs.chat.completions.create(model="", messages=ASK, max_tokens=4)
        assert client.chat("Describe this chest radiograph.").text
        assert not client.openai().is_closed()


def test_without_the_package_the_error_names_the_extra() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openai", None)
        client = medport.AsyncClient(backend="local", url="http://127.0.0.1:9")
        with pytest.raises(ConfigError, match=r"medport\[openai\]"):
            client.openai()
