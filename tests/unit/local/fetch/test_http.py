"""http(s): what is sent, what is taken, and what a server may not make us do."""

from __future__ import annotations

import gzip
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.faults import Answer, FaultServer, dead_port
from support.web import RawServer

from medport.errors import InputError, row_of
from medport_local.serving.fetch import Fetcher, FetchError

MakeFetcher = Callable[..., Fetcher]
KIB = 1024
HEAD = b"HTTP/1.1 200 OK\r\n"


def at(server: FaultServer | RawServer, path: str = "/a.png", scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.port}{path}"


def test_a_file_comes_as_it_is(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    web.routes["/a%20b.png?x=1&y=%2e%2e"] = Answer(200, b"pixels")
    fetcher = make_fetcher("127.0.0.1")

    assert fetcher.http(at(web, "/a%20b.png?x=1&y=%2e%2e#part"), field="f") == b"pixels"

    asked = web.seen[0]
    assert asked.path == "/a%20b.png?x=1&y=%2e%2e"
    assert asked.headers["host"] == f"127.0.0.1:{web.port}"
    assert asked.headers["accept-encoding"] == "identity"
    assert "authorization" not in asked.headers


def test_a_path_outside_ascii_is_sent_in_utf_8(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    web.routes["/%E7%89%87.png"] = Answer(200, b"pixels")

    assert make_fetcher("127.0.0.1").http(at(web, "/片.png"), field="f") == b"pixels"


def test_a_name_is_fetched_over_verified_tls(make_fetcher: MakeFetcher, secure_web: FaultServer) -> None:
    secure_web.routes["/a.png"] = Answer(200, b"pixels")
    entry = f"images.hospital:{secure_web.port}=127.0.0.1"
    fetcher = make_fetcher(entry, names={"images.hospital": ["127.0.0.1"]})

    assert fetcher.http(f"https://images.hospital:{secure_web.port}/a.png", field="f") == b"pixels"
    assert secure_web.seen[0].headers["host"] == f"images.hospital:{secure_web.port}"


def test_the_next_address_is_tried_when_one_does_not_answer(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    web.routes["/a.png"] = Answer(200, b"pixels")
    fetcher = make_fetcher(f"pics:{web.port}=127.0.0.0/8", names={"pics": ["127.0.0.77", "127.0.0.1"]})

    assert fetcher.http(f"http://pics:{web.port}/a.png", field="f") == b"pixels"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "HTTP_ERROR"),
        (500, "HTTP_ERROR"),
        (204, "HTTP_ERROR"),
        (206, "HTTP_ERROR"),
        (304, "HTTP_ERROR"),
        (401, "INVALID_CREDENTIALS_ERROR"),
        (403, "INVALID_CREDENTIALS_ERROR"),
    ],
)
def test_an_answer_that_is_no_file_is_an_error(
    make_fetcher: MakeFetcher, web: FaultServer, status: int, code: str
) -> None:
    web.routes["/a.png"] = Answer(status, b"")

    with pytest.raises(FetchError, match=str(status)) as caught:
        make_fetcher("127.0.0.1").http(at(web), field="image_url")

    assert caught.value.code == code
    assert row_of(caught.value).error is InputError


def test_nobody_there_and_an_unknown_name_are_http_errors(make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher("127.0.0.1")
    with pytest.raises(FetchError, match="cannot be reached") as caught:
        fetcher.http(f"http://127.0.0.1:{dead_port()}/", field="f")
    assert caught.value.code == "HTTP_ERROR"

    def unknown(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    nowhere = Fetcher(["images.org"], resolve=unknown)
    with pytest.raises(FetchError, match="does not resolve") as caught:
        nowhere.http("https://images.org/", field="f")
    nowhere.close()
    assert caught.value.code == "HTTP_ERROR"


# Size


def test_an_announced_size_above_the_limit_is_refused_before_the_body(make_fetcher: MakeFetcher) -> None:
    def announces(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(HEAD + b"Content-Length: 4000000000\r\n\r\n")
        closing.wait(10)

    with RawServer(announces) as server:
        fetcher = make_fetcher("127.0.0.1", max_bytes=64 * KIB)
        with pytest.raises(FetchError, match="larger than") as caught:
            fetcher.http(at(server), field="f")

    assert caught.value.code == "UNHANDLED_HTTP_FILE_ERROR"


@pytest.mark.parametrize("length", [b"9" * 5000, b"-1", b"1e3", b"0x10", b"5, 6"])
def test_a_nonsensical_size_is_refused(make_fetcher: MakeFetcher, length: bytes) -> None:
    def lies(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(HEAD + b"Content-Length: " + length + b"\r\n\r\n12345")

    with RawServer(lies) as server, pytest.raises(FetchError):
        make_fetcher("127.0.0.1").http(at(server), field="f")


def test_a_body_shorter_than_announced_is_not_a_file(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    web.routes["/a.png"] = Answer(200, b"half", missing=4)

    with pytest.raises(FetchError, match="broke off") as caught:
        make_fetcher("127.0.0.1").http(at(web), field="f")

    assert caught.value.code == "HTTP_ERROR"


def test_what_follows_the_announced_size_is_not_read(make_fetcher: MakeFetcher) -> None:
    def lies(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(HEAD + b"Content-Length: 6\r\n\r\npixels" + b"HTTP/1.1 200 OK\r\n\r\nsmuggled")

    with RawServer(lies) as server:
        assert make_fetcher("127.0.0.1").http(at(server), field="f") == b"pixels"


def test_two_lengths_for_one_body_are_refused(make_fetcher: MakeFetcher) -> None:
    def smuggles(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\npixels")

    with RawServer(smuggles) as server, pytest.raises(FetchError):
        make_fetcher("127.0.0.1").http(at(server), field="f")


def endless_chunks() -> Iterator[bytes]:
    yield from itertools.repeat(b"x" * 8192)


def test_an_endless_chunked_body_ends_at_the_limit(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    web.routes["/a.png"] = Answer(200, endless_chunks())

    with pytest.raises(FetchError, match="larger than"):
        make_fetcher("127.0.0.1", max_bytes=256 * KIB).http(at(web), field="f")


def test_an_endless_body_without_a_length_ends_at_the_limit(make_fetcher: MakeFetcher) -> None:
    def pours(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(HEAD + b"\r\n")
        while not closing.is_set():
            connection.sendall(b"x" * 65536)

    with RawServer(pours) as server, pytest.raises(FetchError, match="larger than"):
        make_fetcher("127.0.0.1", max_bytes=256 * KIB).http(at(server), field="f")


def test_a_body_of_exactly_the_limit_is_taken(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    web.routes["/a.png"] = Answer(200, b"x" * (64 * KIB))
    web.routes["/b.png"] = Answer(200, [b"x" * (64 * KIB), b"y"])
    fetcher = make_fetcher("127.0.0.1", max_bytes=64 * KIB)

    assert len(fetcher.http(at(web), field="f")) == 64 * KIB
    with pytest.raises(FetchError, match="larger than"):
        fetcher.http(at(web, "/b.png"), field="f")


def test_one_byte_chunks_are_bounded_on_the_wire(make_fetcher: MakeFetcher) -> None:
    def crumbles(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(300):  # 300 KB of body, below the limit, in 1.8 MB
            connection.sendall(b"1\r\nx\r\n" * 1000)
        connection.sendall(b"0\r\n\r\n")

    with RawServer(crumbles) as server, pytest.raises(FetchError, match="larger than"):
        make_fetcher("127.0.0.1", max_bytes=400 * KIB).http(at(server), field="f")


def test_informational_answers_are_bounded_on_the_wire(make_fetcher: MakeFetcher) -> None:
    def stalls(connection: socket.socket, _: threading.Event) -> None:
        for _ in range(2000):
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\nX: " + b"y" * 1000 + b"\r\n\r\n")
        connection.sendall(HEAD + b"Content-Length: 1\r\n\r\nx")

    with RawServer(stalls) as server, pytest.raises(FetchError, match="larger than"):
        make_fetcher("127.0.0.1", max_bytes=64 * KIB).http(at(server), field="f")


def test_an_endless_header_is_refused(make_fetcher: MakeFetcher) -> None:
    def rambles(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(HEAD)
        while not closing.is_set():
            connection.sendall(b"X-Header: " + b"y" * 8000 + b"\r\n")

    with RawServer(rambles) as server, pytest.raises(FetchError):
        make_fetcher("127.0.0.1").http(at(server), field="f")


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "zstd", "deflate", "identity, gzip", "gzip, gzip"])
def test_a_packed_body_is_refused_and_not_unpacked(
    make_fetcher: MakeFetcher, web: FaultServer, encoding: str
) -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)
    web.routes["/a.png"] = Answer(200, bomb, {"content-encoding": encoding})

    with pytest.raises(FetchError, match="packed") as caught:
        make_fetcher("127.0.0.1").http(at(web), field="f")

    assert caught.value.code == "UNHANDLED_HTTP_FILE_ERROR"


# Time


def drips(head: bytes, drop: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def answer(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(head)
        while not closing.wait(0.05):
            connection.sendall(drop)

    return answer


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        pytest.param(HEAD + b"Content-Length: 60000\r\n\r\n", b"x", id="body"),
        pytest.param(HEAD + b"\r\n", b"x", id="body without a length"),
        pytest.param(HEAD + b"X: ", b"y", id="header"),
        pytest.param(b"", b"H", id="status line"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"e", id="chunk extension"),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\n", b"", id="silence"),
    ],
)
def test_a_slow_drip_ends_at_the_deadline(make_fetcher: MakeFetcher, head: bytes, drop: bytes) -> None:
    with RawServer(drips(head, drop)) as server:
        fetcher = make_fetcher("127.0.0.1", timeout_s=0.4)
        began = time.monotonic()

        with pytest.raises(FetchError) as caught:
            fetcher.http(at(server), field="f")

    assert caught.value.code == "HTTP_ERROR"
    assert time.monotonic() - began < 5  # each drop alone would have been in time, for as long as they come


def test_a_tls_handshake_that_never_comes_ends_at_the_deadline(make_fetcher: MakeFetcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fetcher = make_fetcher("127.0.0.1", timeout_s=0.3)

        with pytest.raises(FetchError, match="too long"):
            fetcher.http(f"https://127.0.0.1:{silent.getsockname()[1]}/", field="f")


def test_a_slow_name_server_ends_at_the_deadline() -> None:
    hold = threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        hold.wait(10)
        return []

    fetcher = Fetcher(["images.org"], resolve=slow)

    with pytest.raises(FetchError, match="too long"):
        fetcher.http("https://images.org/", field="f", deadline=time.monotonic() + 0.2)

    hold.set()
    fetcher.close()


def test_the_requests_deadline_shortens_the_servers_and_one_that_has_passed_sends_nothing(
    make_fetcher: MakeFetcher, web: FaultServer
) -> None:
    web.routes["/a.png"] = Answer(hangs=True)
    fetcher = make_fetcher("127.0.0.1", timeout_s=60)

    with pytest.raises(FetchError, match="too long"):
        fetcher.http(at(web), field="f", deadline=time.monotonic() + 0.2)
    assert len(web.seen) == 1
    with pytest.raises(FetchError, match="too long"):
        fetcher.http(at(web), field="f", deadline=time.monotonic() - 1)
    assert len(web.seen) == 1


def test_redirects_share_one_deadline(make_fetcher: MakeFetcher) -> None:
    def loops(connection: socket.socket, closing: threading.Event) -> None:
        closing.wait(0.15)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")

    with RawServer(loops) as server:
        fetcher = make_fetcher("127.0.0.1", timeout_s=0.5, max_redirects=1000)
        with pytest.raises(FetchError, match="too long"):
            fetcher.http(at(server), field="f")

        assert server.connections < 10


# Credentials


def test_a_token_is_sent_over_tls(make_fetcher: MakeFetcher, secure_web: FaultServer) -> None:
    secure_web.routes["/a.png"] = Answer(200, b"pixels")

    make_fetcher("127.0.0.1").http(at(secure_web, scheme="https"), credential="ya29.a-b_c", field="f")

    assert secure_web.seen[0].headers["authorization"] == "Bearer ya29.a-b_c"


@pytest.mark.parametrize("credential", [None, ""])
def test_no_credential_is_no_header(make_fetcher: MakeFetcher, web: FaultServer, credential: str | None) -> None:
    web.routes["/a.png"] = Answer(200, b"pixels")

    make_fetcher("127.0.0.1").http(at(web), credential=credential, field="f")

    assert "authorization" not in web.seen[0].headers


def test_a_token_never_goes_to_another_origin_after_a_redirect_nor_back_again(
    make_fetcher: MakeFetcher, authority: Authority, secure_web: FaultServer
) -> None:
    with FaultServer(authority.issue("127.0.0.1", "localhost")) as other:
        back = f"https://127.0.0.1:{secure_web.port}/chosen-by-the-other"
        there = f"https://127.0.0.1:{other.port}/a.png"
        other.routes["/a.png"] = Answer(302, b"", {"location": back})
        secure_web.routes["/a.png"] = Answer(302, b"", {"location": there})
        secure_web.routes["/chosen-by-the-other"] = Answer(200, b"pixels")

        make_fetcher("127.0.0.1").http(at(secure_web, scheme="https"), credential="token", field="f")

        assert "authorization" not in other.seen[0].headers
        assert ["authorization" in seen.headers for seen in secure_web.seen] == [True, False]


def test_a_token_stays_with_a_redirect_inside_its_origin(
    make_fetcher: MakeFetcher, secure_web: FaultServer
) -> None:
    secure_web.routes["/a.png"] = Answer(302, b"", {"location": "/b.png"})
    secure_web.routes["/b.png"] = Answer(200, b"pixels")

    make_fetcher("127.0.0.1").http(at(secure_web, scheme="https"), credential="token", field="f")

    assert [seen.headers.get("authorization") for seen in secure_web.seen] == ["Bearer token"] * 2


def test_a_token_is_not_sent_over_plain_http_across_a_network(make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher("http://images.org", names={"images.org": ["93.184.216.34"]})

    with pytest.raises(FetchError, match="plain http") as caught:
        fetcher.http("http://images.org/a", credential="token", field="f")

    assert caught.value.code == "INVALID_CREDENTIALS_ERROR"


@pytest.mark.parametrize(
    "credential", ["Bearer x", "a b", "x\r\nHost: evil", "x\n", "tökén", "a" * 20_000, "application_default"]
)
def test_what_is_no_token_is_refused_before_anything_is_sent(
    make_fetcher: MakeFetcher, secure_web: FaultServer, credential: str
) -> None:
    with pytest.raises(FetchError) as caught:
        make_fetcher("127.0.0.1").http(at(secure_web, scheme="https"), credential=credential, field="f")

    assert caught.value.code == "INVALID_CREDENTIALS_ERROR"
    assert credential not in str(caught.value)
    assert secure_web.seen == []


# The surroundings


def test_proxies_and_netrc_of_the_environment_are_not_used(
    make_fetcher: MakeFetcher, web: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.routes["/a.png"] = Answer(200, b"pixels")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with FaultServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)

        assert make_fetcher("127.0.0.1").http(at(web), field="f") == b"pixels"

        assert proxy.seen == []
        assert "authorization" not in web.seen[0].headers


def test_cookies_are_not_kept(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    web.routes["/a.png"] = Answer(302, b"", {"location": "/b.png", "set-cookie": "a=b; Path=/"})
    web.routes["/b.png"] = Answer(200, b"pixels", {"set-cookie": "c=d; Path=/"})
    fetcher = make_fetcher("127.0.0.1")

    for _ in range(2):
        fetcher.http(at(web), field="f")

    assert all("cookie" not in seen.headers for seen in web.seen)


def test_each_request_has_a_connection_of_its_own(make_fetcher: MakeFetcher) -> None:
    def answers(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(HEAD + b"Content-Length: 1\r\n\r\nx")

    with RawServer(answers) as server:
        fetcher = make_fetcher("127.0.0.1")
        for _ in range(3):
            fetcher.http(at(server), field="f")

        assert server.connections == 3


def test_one_fetcher_serves_many_threads(make_fetcher: MakeFetcher, web: FaultServer) -> None:
    for number in range(40):
        web.routes[f"/n{number}"] = Answer(200, str(number).encode())
    fetcher = make_fetcher("127.0.0.1")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: fetcher.http(at(web, f"/n{n}"), field="f"), range(40)))

    assert found == [str(number).encode() for number in range(40)]


def test_nothing_of_a_url_or_credential_reaches_logs_or_errors(
    make_fetcher: MakeFetcher, secure_web: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # other libraries turn it down when they are imported
    secure_web.routes["?who=canary-query"] = Answer(302, b"", {"location": "/canary-location?canary-query"})
    secure_web.routes["/canary-location?canary-query"] = Answer(404, b"canary-body", {"x-canary": "canary-header"})
    fetcher = make_fetcher("127.0.0.1")
    url = at(secure_web, "/canary-path?who=canary-query", scheme="https")

    with pytest.raises(FetchError) as caught:
        fetcher.http(url, credential="canary-token", field="f")

    assert "canary" not in caplog.text
    assert "canary" not in f"{caught.value} {caught.value!r}"
    assert caught.value.__cause__ is None


def test_the_libraries_may_speak_again_outside_a_fetch(
    make_fetcher: MakeFetcher, web: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")
    web.routes["/a.png"] = Answer(200, b"pixels")
    make_fetcher("127.0.0.1").http(at(web), field="f")

    logging.getLogger("httpx").info("somebody else's request")

    assert "somebody else's request" in caplog.text
