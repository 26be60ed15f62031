"""Google tokens: fetched once, ahead of their end, renewed after a refusal, and sent to no other origin."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from support.faults import Answer, FaultServer, dead_port
from support.polling import wait_until
from support.vertex import TEXT, Vertex, cold, failure, reply

import medport
from medport.auth import ApiKey

STALE_S = 200
"""Under google-auth's 225 s: usable, and due for renewal."""


def tokens_at(vertex: Vertex, end: str) -> list[str | None]:
    return [request.token for request in vertex.asked(end)]


def test_one_token_serves_many_calls(vertex: Vertex) -> None:
    with medport.Client(**vertex.settings()) as client:
        for _ in range(3):
            assert client.chat("hello").text == TEXT

    assert len(vertex.asked("/token")) == 1


def test_fifty_calls_on_a_cold_token_fetch_one(vertex: Vertex) -> None:
    vertex.token_delay_s = 0.2

    async def ask() -> list[medport.Chat]:
        async with medport.AsyncClient(**vertex.settings()) as client:
            return list(await asyncio.gather(*(client.chat("hello") for _ in range(50))))

    answers = asyncio.run(ask())

    assert {answer.text for answer in answers} == {TEXT}
    assert len(vertex.asked("/token")) == 1


def test_the_event_loop_turns_while_a_token_is_fetched(vertex: Vertex) -> None:
    vertex.token_delay_s = 0.5
    turns: list[float] = []

    async def tick() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def ask() -> None:
        async with medport.AsyncClient(**vertex.settings()) as client:
            ticking = asyncio.ensure_future(tick())
            await client.chat("hello")
            ticking.cancel()

    asyncio.run(ask())

    assert max(b - a for a, b in itertools.pairwise(turns)) < 0.4


def test_a_token_near_its_end_is_renewed_behind_the_call(vertex: Vertex) -> None:
    vertex.token_life_s = STALE_S
    with medport.Client(**vertex.settings()) as client:
        client.chat("hello")
        vertex.token_life_s, vertex.token_delay_s = 3600, 0.3
        began = time.monotonic()
        client.chat("hello")
        waited = time.monotonic() - began

        wait_until(lambda: len(vertex.tokens) >= 2)
        client.chat("hello")

    assert waited < 0.3
    first, *_, last = tokens_at(vertex, ":predict")
    assert first != last


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_revoked_token_is_renewed_once_without_the_caller_noticing(
    vertex: Vertex, streams: bool, colour: str
) -> None:
    async def ask_async() -> str:
        async with medport.AsyncClient(**vertex.settings()) as client:
            await client.chat("hello")
            vertex.revoke_tokens()
            if not streams:
                return (await client.chat("hello")).text
            async with client.chat_stream("hello") as stream:
                return "".join([delta.text async for delta in stream])

    def ask() -> str:
        with medport.Client(**vertex.settings()) as client:
            client.chat("hello")
            vertex.revoke_tokens()
            if not streams:
                return client.chat("hello").text
            with client.chat_stream("hello") as stream:
                return "".join(delta.text for delta in stream)

    text = ask() if colour == "sync" else asyncio.run(ask_async())

    assert text == TEXT
    assert len(vertex.asked("/token")) == 2


@pytest.mark.parametrize("streams", [False, True])
def test_a_second_refusal_is_an_error(vertex: Vertex, streams: bool) -> None:
    refused = failure(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
    with medport.Client(**vertex.settings()) as client:
        ask = (lambda: list(client.chat_stream("hello"))) if streams else (lambda: client.chat("hello"))
        ask()
        vertex.script = [refused] * 5

        with pytest.raises(medport.AuthError):
            ask()

    assert len(vertex.asked("/token")) == 2
    assert len(vertex.script) == 3


def test_a_role_that_is_missing_costs_no_second_token(vertex: Vertex) -> None:
    with medport.Client(**vertex.settings()) as client:
        client.chat("hello")
        vertex.script = [failure(403, "PERMISSION_DENIED", "Permission 'endpoints.predict' denied.")] * 2

        with pytest.raises(medport.AuthError) as caught:
            client.chat("hello")

    assert "role" in (caught.value.remedy or "")
    assert len(vertex.asked("/token")) == 1


def test_a_token_server_that_is_down_is_tried_again_and_then_named(vertex: Vertex, account: Any) -> None:
    settings = vertex.settings(max_attempts=2)
    account.write(vertex._folder, f"https://localhost:{dead_port()}/token")

    with medport.Client(**settings) as client, pytest.raises(medport.AuthError) as caught:
        client.chat("hello")

    assert caught.value.retryable
    assert caught.value.attempts == 2
    assert not vertex.asked(":predict")


def test_a_refused_assertion_is_not_tried_again(vertex: Vertex) -> None:
    vertex.token_script = [reply({"error": "invalid_grant", "error_description": "Invalid JWT"}, 400)] * 9

    with medport.Client(**vertex.settings()) as client, pytest.raises(medport.AuthError) as caught:
        client.chat("hello")

    assert not caught.value.retryable
    assert caught.value.attempts == 1


def test_a_wrong_clock_is_named(vertex: Vertex) -> None:
    said = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe"
    vertex.token_script = [reply({"error": "invalid_grant", "error_description": said}, 400)] * 9

    with medport.Client(**vertex.settings()) as client, pytest.raises(medport.AuthError, match="clock"):
        client.chat("hello")


def test_a_redirect_does_not_take_the_token_along(vertex: Vertex) -> None:
    with FaultServer() as elsewhere, medport.Client(**vertex.settings()) as client:
        elsewhere.routes = {"": Answer(200, b"{}")}
        client.chat("hello")
        for status in (301, 302, 303, 307, 308):
            vertex.script = [Answer(status, b"", {"location": f"{elsewhere.url}/v1/x:predict"})]

            with pytest.raises(medport.ProtocolError):
                client.chat("hello")

        assert elsewhere.seen == []


def test_a_redirect_of_the_token_server_is_not_followed(vertex: Vertex) -> None:
    with FaultServer() as elsewhere, medport.Client(**vertex.settings(max_attempts=1)) as client:
        elsewhere.routes = {"": Answer(200, b"{}")}
        vertex.token_script = [Answer(307, b"", {"location": f"{elsewhere.url}/token"})] * 9

        with pytest.raises(medport.AuthError):
            client.chat("hello")

        assert elsewhere.seen == []


@pytest.mark.parametrize(
    "dns", ["evil.example", "prediction.vertexai.goog.evil.example", "notlocalhost", "localhost.evil.example:443"]
)
def test_a_host_that_is_not_googles_is_refused_the_token(vertex: Vertex, dns: str) -> None:
    vertex.dns = dns

    with medport.Client(**vertex.settings()) as client, pytest.raises(medport.PolicyError) as caught:
        client.chat("hello")

    assert caught.value.field == "dedicatedEndpointDns"
    assert not vertex.asked(":predict")


@pytest.mark.parametrize(
    "dns", ["localhost/@evil.example", "user@localhost", "localhost#x", "localhost:1:2", "a b"]
)
def test_a_dns_name_that_is_none_is_refused(vertex: Vertex, dns: str) -> None:
    vertex.dns = dns

    with medport.Client(**vertex.settings()) as client, pytest.raises(medport.PolicyError):
        client.chat("hello")


def test_a_host_of_another_region_is_refused(vertex: Vertex) -> None:
    vertex.dns = "1001.us-central1-123.localhost"

    with medport.Client(**vertex.settings()) as client, pytest.raises(medport.PolicyError, match="us-central1"):
        client.chat("hello")


def test_an_endpoint_that_turns_out_to_be_elsewhere_is_refused(vertex: Vertex) -> None:
    vertex.answers_as = "projects/123456789012/locations/us-central1/endpoints/"

    with medport.Client(**vertex.settings()) as client, pytest.raises(medport.PolicyError, match="us-central1"):
        client.chat("hello")

    assert not vertex.asked(":predict")


def test_the_token_goes_to_the_endpoint_and_its_look_ups_only(vertex: Vertex) -> None:
    with medport.Client(**vertex.settings()) as client:
        client.chat("hello")
        client.embed_texts("hello")

    with_token = {(request.plane, request.method) for request in vertex.seen if request.token}
    assert with_token == {("control", "GET"), ("data", "POST")}
    assert all(request.token is None for request in vertex.asked("/token"))


def test_no_token_is_in_any_repr_or_error(vertex: Vertex, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    said: list[str] = []
    with medport.Client(**vertex.settings(max_attempts=1)) as client:
        client.chat("hello")
        token = next(iter(vertex.tokens))
        for answer in (failure(500, "INTERNAL", "x"), cold(), failure(403, "PERMISSION_DENIED", "x")):
            vertex.script = [answer]
            with pytest.raises(medport.MedportError) as caught:
                client.chat("hello")
            said += [repr(caught.value), str(caught.value), repr(vars(caught.value))]
        backend = client._backends["vertex"]
        request = backend.get("x")
        said += [repr(client), repr(client._config), repr(backend), repr(request), repr(client._targets)]

    assert token in str(request.headers)
    assert token not in "\n".join([*said, caplog.text])


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nbreak"])
def test_a_key_that_cannot_be_a_header_is_refused_unseen(key: str) -> None:
    with pytest.raises(medport.ConfigError) as caught:
        ApiKey(key)

    assert not key or key not in str(caught.value)


def test_a_key_is_not_sent_over_plain_http() -> None:
    with (
        medport.Client(url="http://gpu01.hospital.example:8000", api_key="KEY-CANARY") as client,
        pytest.raises(medport.ConfigError, match="plain http") as caught,
    ):
        client.chat("hello")

    assert "KEY-CANARY" not in repr(caught.value)


def test_a_password_in_the_url_is_refused_unseen() -> None:
    with pytest.raises(medport.ConfigError) as caught:
        medport.Client(url="https://doctor:PASSWORD-CANARY@gpu01.hospital.example")

    assert caught.value.field == "profiles.local.url"
    assert "PASSWORD-CANARY" not in repr(caught.value) + str(caught.value)
