"""Downloads that go wrong, from a real server: what is gone on with, what is begun again, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from support.certificates import Authority
from support.hub_server import Answer, Change, Hub, body, cut, flipped, headers, hub_server, status
from support.polling import wait_until

from medport.errors import (
    ConnectionFailed,
    MedportError,
    PolicyError,
    ProtocolError,
    QuotaExceeded,
    ServerError,
    Timeout,
    VerificationError,
)
from medport_local.snapshot import open_snapshot
from medport_local.sources import hub_http
from medport_local.store import Store

from .conftest import MODEL

Fetch = Callable[..., Any]
WEIGHTS, SETTINGS = "model-00002-of-00003.safetensors", "config.json"


def holds(stored: Any, files: dict[str, bytes]) -> bool:
    snapshot = open_snapshot(stored.directory)
    return {name: snapshot.read(name) for name in snapshot.files} == files


# -- gone on with -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 65_536, 100_000, 1_728_464])
def test_a_broken_download_is_gone_on_with_where_it_broke(
    hub: Hub, fetch: Fetch, files: dict[str, bytes], at: int
) -> None:
    hub.change(WEIGHTS, cut(at))

    stored = fetch()

    assert holds(stored, files)
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])
    ranges = [request.headers.get("range") for request in hub.requests if request.server == "storage"]
    assert f"bytes={at}-" in ranges


def test_a_download_that_breaks_often_needs_no_more_bytes(hub: Hub, fetch: Fetch, files: dict[str, bytes]) -> None:
    hub.change(WEIGHTS, *[cut(100_000)] * 12)

    assert holds(fetch(), files)

    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("name", ["api", SETTINGS, WEIGHTS])
def test_a_busy_hub_is_asked_again(hub: Hub, fetch: Fetch, files: dict[str, bytes], name: str, code: int) -> None:
    hub.change(name, status(code), status(code))

    assert holds(fetch(), files)

    assert len(fetch.waits) == 2
    assert all(wait > 0 for wait in fetch.waits)


def test_the_wait_that_a_hub_asks_for_is_kept(hub: Hub, fetch: Fetch) -> None:
    hub.change("api", status(429, Retry_After="17"), status(429, ratelimit='"api";r=0;t=23'))

    fetch()

    assert fetch.waits[0] >= 17
    assert fetch.waits[1] >= 23


def test_a_wait_of_an_hour_is_said_and_not_waited(hub: Hub, fetch: Fetch) -> None:
    hub.change("api", status(429, Retry_After="3600"))

    with pytest.raises(QuotaExceeded) as raised:
        fetch()

    assert raised.value.retry_after_s == 3600
    assert fetch.waits == []


@pytest.mark.parametrize(
    ("change", "error"),
    [(status(503), ServerError), (status(429), QuotaExceeded), (cut(0), ConnectionFailed)],
    ids=["503", "429", "nothing"],
)
def test_a_hub_that_stays_so_is_given_up_and_what_has_arrived_is_kept(
    hub: Hub, fetch: Fetch, files: dict[str, bytes], change: Change, error: type[MedportError]
) -> None:
    hub.change(WEIGHTS, cut(500_000), *[change] * 6)
    with pytest.raises(error) as raised:
        fetch()
    assert raised.value.attempts == 6

    assert holds(fetch(), files)

    assert sum(hub.sent[name] for name in files if name.endswith(".safetensors")) == sum(
        len(data) for name, data in files.items() if name.endswith(".safetensors")
    )


def test_a_hub_that_falls_silent_times_out(hub: Hub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "_SILENCE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(hub_http, "_ATTEMPTS", 2)
    hub.change("api", *[headers(Content_Length="100000")] * 2)

    with pytest.raises(Timeout):
        fetch()


def test_a_server_that_ignores_the_range_costs_bytes_and_nothing_else(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    def whole(answer: Answer) -> None:
        answer.status, answer.body = 200, files[WEIGHTS]
        del answer.headers["Content-Range"]

    hub.change(WEIGHTS, cut(100_000), whole)

    assert holds(fetch(), files)

    assert hub.sent[WEIGHTS] == 100_000 + len(files[WEIGHTS])


def test_another_etag_on_going_on_begins_the_file_again(hub: Hub, fetch: Fetch, files: dict[str, bytes]) -> None:
    hub.change(WEIGHTS, cut(100_000), headers(ETag='"another"'))

    assert holds(fetch(), files)

    assert any("changed while it was read; beginning again" in line for line in fetch.said)


def test_a_file_that_changes_again_and_again_is_given_up(hub: Hub, fetch: Fetch) -> None:
    hub.change(WEIGHTS, *[cut(100_000), headers(ETag='"another"')] * 2)

    with pytest.raises(VerificationError, match=f"{WEIGHTS}.*changed"):
        fetch()


@pytest.mark.parametrize("name", [WEIGHTS, SETTINGS])
def test_what_was_kept_and_altered_meanwhile_is_fetched_again(
    hub: Hub, fetch: Fetch, store: Store, files: dict[str, bytes], name: str
) -> None:
    hub.change(name, cut(100_000 if name == WEIGHTS else 1_000), *[status(503)] * 6)
    with pytest.raises(ServerError):
        fetch()
    (part,) = store.root.glob("partial/*/*.part")
    part.write_bytes(flipped(part.read_bytes()))

    assert holds(fetch(), files)


# -- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, SETTINGS])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (body(flipped), "sha256 that|git's id that"),
        (body(lambda data: data + b"more"), "longer"),
        (body(lambda data: data[:-4]), "shorter"),
        (body(lambda data: data + b"more", chunked=True), "longer"),
    ],
    ids=["a flipped bit", "longer", "shorter", "longer, of unsaid length"],
)
def test_a_file_that_is_not_the_listed_one_is_refused(
    hub: Hub, fetch: Fetch, store: Store, name: str, change: Change, said: str
) -> None:
    hub.change(name, change)

    with pytest.raises(VerificationError, match=f"{name}.*({said})"):
        fetch()

    assert store.list() == []


def test_a_shorter_file_of_unsaid_length_is_gone_on_with_and_then_refused(hub: Hub, fetch: Fetch) -> None:
    short = body(lambda data: data[:-4], chunked=True)
    hub.change(WEIGHTS, short, status(416))

    with pytest.raises(VerificationError, match="shorter"):
        fetch()


def test_a_file_that_was_refused_is_fetched_whole_by_the_next_pull(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    hub.change(WEIGHTS, body(flipped))
    with pytest.raises(VerificationError):
        fetch()

    assert holds(fetch(), files)


@pytest.mark.parametrize("name", ["api", SETTINGS, WEIGHTS])
def test_a_packed_answer_is_refused(hub: Hub, fetch: Fetch, name: str) -> None:
    hub.change(name, headers(Content_Encoding="gzip"))

    with pytest.raises(ProtocolError, match="packed"):
        fetch()


@pytest.mark.parametrize(
    "span", ["bytes 99999-1728464/1728465", "bytes 0-9/10", "", "lines 1-2/3", "bytes -1-2/3", "bytes x"]
)
def test_another_part_than_was_asked_for_is_refused(hub: Hub, fetch: Fetch, span: str) -> None:
    hub.change(WEIGHTS, cut(100_000), headers(Content_Range=span))

    with pytest.raises(ProtocolError, match="another part"):
        fetch()


def test_a_part_of_a_file_of_another_size_is_refused(hub: Hub, fetch: Fetch) -> None:
    hub.change(WEIGHTS, cut(100_000), headers(Content_Range="bytes 100000-1728470/1728471"))

    with pytest.raises(VerificationError, match="longer"):
        fetch()


def test_a_listing_without_end_is_refused(hub: Hub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "_MAX_JSON_BYTES", 1000)

    with pytest.raises(ProtocolError, match="larger"):
        fetch()


def test_a_storage_host_that_refuses_is_not_taken_for_the_hub(hub: Hub, fetch: Fetch) -> None:
    hub.change(WEIGHTS, status(403))

    with pytest.raises(MedportError, match="where the hub stores"):
        fetch()


# -- redirects ----------------------------------------------------------------------------------------------------


def to(location: str) -> Change:
    return lambda answer: answer.headers.update(Location=location)


def test_redirects_in_a_circle_are_left(hub: Hub, fetch: Fetch) -> None:
    hub.redirect_changes[WEIGHTS] = [to(f"/{MODEL}/resolve/{'0' * 40}/x.safetensors")]
    around = f"{hub.endpoint}/{MODEL}/resolve/{hub.repositories[MODEL].branches['main']}/{WEIGHTS}"
    hub.redirect_changes[WEIGHTS] = [to(around)] * 20

    with pytest.raises(ProtocolError, match="circle"):
        fetch()

    assert len(hub.redirect_changes[WEIGHTS]) > 10


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user@127.0.0.1/x",
        "http://169.254.169.254/x",
        "http://[::1/x",
    ],
)
def test_a_redirect_to_what_is_no_storage_host_is_refused(hub: Hub, fetch: Fetch, location: str) -> None:
    hub.redirect_changes[WEIGHTS] = [to(location)]

    with pytest.raises((PolicyError, ProtocolError), match="redirects"):
        fetch()

    assert fetch.waits == []


def test_a_redirect_from_https_to_http_is_refused(
    authority: Authority, store: Store, files: dict[str, bytes], fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    close_session()
    with hub_server(hub_tls=authority.issue("127.0.0.1")) as hub:
        hub.add(MODEL, files)
        with pytest.raises(PolicyError, match="plain http"):
            fetch(endpoint=hub.endpoint)
        close_session()

    assert not any(request.server == "storage" for request in hub.requests)


def test_a_hub_whose_certificate_nobody_signed_is_not_asked_again(
    authority: Authority, files: dict[str, bytes], fetch: Fetch
) -> None:
    close_session()
    with hub_server(hub_tls=authority.issue("127.0.0.1")) as hub:
        hub.add(MODEL, files)
        with pytest.raises(ConnectionFailed, match="certificate"):
            fetch(endpoint=hub.endpoint)
        close_session()

    assert fetch.waits == []


# -- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull_is_gone_on_with_and_fetches_nothing_twice(
    hub: Hub, fetch: Fetch, files: dict[str, bytes], store: Store, number: int
) -> None:
    hub.pause_s = 0.02
    command = ["from medport_local.cli_pull import app; app()", "pull", MODEL, "--store", str(store.root)]
    process = subprocess.Popen(
        [sys.executable, "-c", *command],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: hub.sent[WEIGHTS] > 500_000 or process.poll() is not None, 60)

    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0
    hub.pause_s = 0
    sent = hub.sent[WEIGHTS]
    stored = fetch()

    assert holds(stored, files)
    assert hub.sent[WEIGHTS] - len(files[WEIGHTS]) <= 4 * 65_536
    assert sent < len(files[WEIGHTS])
    if number == signal.SIGINT:
        assert f"medport snapshot pull {MODEL}" in said


def test_two_pulls_at_once_fetch_once(hub: Hub, fetch: Fetch, files: dict[str, bytes], store: Store) -> None:
    hub.pause_s = 0.005
    command = ["from medport_local.cli_pull import app; app()", "pull", MODEL, "--store", str(store.root)]
    process = subprocess.Popen(
        [sys.executable, "-c", *command],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: hub.sent[WEIGHTS] > 100_000 or process.poll() is not None, 60)

    stored = fetch()

    assert process.wait(60) == 0
    assert holds(stored, files)
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS])


def test_the_path_of_the_store_and_no_name_from_outside_becomes_a_file(
    hub: Hub, fetch: Fetch, store: Store, tmp_path: Path
) -> None:
    hub.change(WEIGHTS, cut(1_000), *[status(503)] * 6)

    with pytest.raises(ServerError):
        fetch()

    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert not list(store.root.rglob("*safetensors*"))
