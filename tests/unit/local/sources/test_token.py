"""A token of the hub: who sees it, and that nothing else ever holds it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from pydantic import SecretStr
from support.certificates import Authority
from support.hub_server import SIGNATURE, Hub, cut, hub_server, status

from medport.errors import ConfigError, MedportError
from medport_local.sources import HubSource

from .conftest import MODEL, STRANGE

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
Fetch = Callable[..., Any]


@pytest.fixture
def guarded(authority: Authority, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A gated model on a hub with TLS, stored on a host of its own."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    certificate = authority.issue("127.0.0.1")
    close_session()
    with hub_server(hub_tls=certificate, storage_tls=certificate) as hub:
        hub.add(MODEL, {**files, **STRANGE}, gated="manual", readers=(TOKEN,))
        hub.accounts[TOKEN] = "dr-lee"
        yield hub
        close_session()


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(guarded: Hub, fetch: Fetch) -> None:
    fetch(endpoint=guarded.endpoint, token=SecretStr(TOKEN))

    sent = {"hub": [], "storage": []}  # type: dict[str, list[str | None]]
    for request in guarded.requests:
        sent[request.server].append(request.headers.get("authorization"))
    assert set(sent["hub"]) == {f"Bearer {TOKEN}"}
    assert set(sent["storage"]) == {None}


def test_the_token_does_not_follow_a_redirect_of_the_api(guarded: Hub, fetch: Fetch) -> None:
    def elsewhere(answer: Any) -> None:
        answer.status, answer.body, answer.headers = 307, b"", {"Location": f"{guarded.storage}/stolen"}

    guarded.change("api", elsewhere)

    with pytest.raises(MedportError):
        fetch(endpoint=guarded.endpoint, token=SecretStr(TOKEN))

    stolen = [request for request in guarded.requests if request.server == "storage"]
    assert stolen
    assert all("authorization" not in request.headers for request in stolen)


@pytest.mark.parametrize("code", [0, 401, 403, 404, 418, 429, 503])
def test_neither_token_nor_signature_stands_in_an_error_a_log_or_a_traceback(
    guarded: Hub, fetch: Fetch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx2", "httpcore2", "httpx", "httpcore", "huggingface_hub"):
        caplog.set_level(logging.DEBUG, logger=name)
    guarded.change("model-00002-of-00003.safetensors", *[status(code) if code else cut(0)] * 6)

    with pytest.raises(MedportError) as raised:
        fetch(endpoint=guarded.endpoint, token=SecretStr(TOKEN))

    shown = "".join(traceback.format_exception(raised.value))
    with_locals = traceback.TracebackException.from_exception(raised.value, capture_locals=True).format()
    for secret in (TOKEN, SIGNATURE):
        assert secret not in shown
        assert secret not in caplog.text
        assert secret not in repr(raised.value)
    assert TOKEN not in "".join(with_locals)


def test_nothing_on_disk_holds_the_token(guarded: Hub, fetch: Fetch, tmp_path: Path) -> None:
    guarded.change("model-00002-of-00003.safetensors", *[status(503)] * 6)
    with pytest.raises(MedportError):
        fetch(endpoint=guarded.endpoint, token=SecretStr(TOKEN))
    fetch(endpoint=guarded.endpoint, token=SecretStr(TOKEN))

    written = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert written
    for path in written:
        data = path.read_bytes()
        assert TOKEN.encode() not in data
        assert SIGNATURE.encode() not in data


def test_no_source_shows_its_token(hub: Hub) -> None:
    source = HubSource(MODEL, endpoint=hub.endpoint, token=SecretStr(TOKEN))

    assert TOKEN not in repr(source) + repr(vars(source)) + repr(vars(source._hub))


def test_a_token_is_not_sent_over_plain_http_beyond_this_machine() -> None:
    with pytest.raises(ConfigError, match="plain http"):
        HubSource(MODEL, endpoint="http://hub.example", token=SecretStr(TOKEN))


@pytest.mark.parametrize("token", ["", " ", "hf_a b", "hf_a\n", "hf_a\r\nX: y", "hf_é", "h" * 5000])
def test_what_cannot_be_a_token_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ConfigError) as raised:
        HubSource(MODEL, token=SecretStr(token))

    assert not token.strip() or token not in str(raised.value)


def test_a_token_that_somebody_logged_in_with_is_not_taken(
    hub: Hub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    fetch()

    assert all("authorization" not in request.headers for request in hub.requests)
