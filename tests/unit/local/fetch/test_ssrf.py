"""URLs made to reach inside: each is refused before a byte leaves, whatever else the allow-list lets through."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from support.certificates import Authority
from support.faults import Answer, FaultServer
from support.web import RawServer

from medport.errors import InputError
from medport_local.serving.fetch import Fetcher, FetchError

MakeFetcher = Callable[..., Fetcher]
WIDE = ("*.org", "http://images.org", "images.org", "10.0.0.0/8", "scans")


@pytest.mark.parametrize("source", ["http", "gcs", "dicom_instance", "dicom_series", "gcs_list"])
def test_an_empty_allow_list_fetches_nothing(source: str) -> None:
    with pytest.raises(FetchError, match="this server fetches nothing") as caught:
        getattr(Fetcher(), source)("https://images.org/studies/1/series/2", field="image_url")

    assert caught.value.field == "image_url"
    assert "--allow-fetch" in (caught.value.remedy or "")
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://169.254.169.254/computeMetadata/v1/", id="metadata address"),
        pytest.param("http://metadata.google.internal/computeMetadata/v1/", id="metadata name"),
        pytest.param("http://metadata/computeMetadata/v1/", id="short metadata name"),
        pytest.param("http://[::1]/", id="IPv6 loopback"),
        pytest.param("http://[fd00:ec2::254]/", id="IPv6 metadata"),
        pytest.param("http://[fd00::1]/", id="unique local"),
        pytest.param("http://[::ffff:127.0.0.1]/", id="mapped loopback"),
        pytest.param("http://[::ffff:7f00:1]/", id="mapped loopback in hex"),
        pytest.param("http://[::127.0.0.1]/", id="compatible loopback"),
        pytest.param("http://[fe80::1%25eth0]/", id="zone"),
        pytest.param("http://127.0.0.1/", id="loopback"),
        pytest.param("http://0.0.0.0/", id="this host"),
        pytest.param("http://10.1.2.3/", id="private, permitted for names only"),
        pytest.param("http://localhost/", id="localhost"),
        pytest.param("http://0x7f.1/", id="hex and short"),
        pytest.param("http://0x7f000001/", id="hex"),
        pytest.param("http://2130706433/", id="decimal"),
        pytest.param("http://017700000001/", id="octal"),
        pytest.param("http://0177.0.0.1/", id="octal part"),
        pytest.param("http://127.1/", id="short"),
        pytest.param("http://127.0.0.1./", id="dot after an address"),
        pytest.param("https://images.org./", id="trailing dot"),
        pytest.param("https://imаges.org/", id="look-alike: a Cyrillic letter"),
        pytest.param("https://images。org/", id="ideographic full stop"),
        pytest.param("http://①②⑦.⓪.⓪.①/", id="circled digits"),
        pytest.param("https://ｉmages.org/", id="full width"),
        pytest.param("https://xn--imges-6ve.com/", id="punycode of another host"),
        pytest.param("https://images.org@127.0.0.1/", id="user part"),
        pytest.param("https://user:secret@images.org/", id="user and password"),
        pytest.param("https://images.org%40127.0.0.1/", id="encoded at"),
        pytest.param("https://images.org%2f@127.0.0.1/", id="encoded slash"),
        pytest.param("https://127.0.0.1\\@images.org/", id="backslash"),
        pytest.param("https://images.org\\.evil.com/", id="backslash in the host"),
        pytest.param("https://127.0.0.1#@images.org/", id="fragment before at"),
        pytest.param("https://images.org\t.evil.com/", id="tab"),
        pytest.param("https://images.org\r\nHost: evil/", id="line break"),
        pytest.param("https://images.org/a\r\nX: y", id="line break in the path"),
        pytest.param("https:///images.org/", id="no host"),
        pytest.param("https:images.org/", id="no slashes"),
        pytest.param("//images.org/", id="no scheme"),
        pytest.param("https://images.org:0/", id="port zero"),
        pytest.param("https://images.org:22/", id="another port"),
        pytest.param("https://images.org:443:22/", id="two ports"),
        pytest.param("file:///etc/passwd", id="file"),
        pytest.param("file://images.org/etc/passwd", id="file with a host"),
        pytest.param("gopher://images.org:70/_GET", id="gopher"),
        pytest.param("ftp://images.org/a", id="ftp"),
        pytest.param("data:image/png;base64,AAAA", id="data"),
        pytest.param("data:text/plain,https://images.org/", id="data around a URL"),
        pytest.param("url:https://images.org/", id="nested scheme"),
        pytest.param("jar:https://images.org/!/", id="jar"),
        pytest.param("https://https://images.org/", id="scheme twice"),
        pytest.param("https://" + "a" * 10_000 + ".org/", id="endless host"),
        pytest.param("https://images.org/" + "a" * 10_000, id="endless path"),
        pytest.param("https://images.org/\ud800", id="lone surrogate"),
        pytest.param("", id="empty"),
    ],
)
def test_a_url_that_reaches_inside_is_refused_before_any_look_up(make_fetcher: MakeFetcher, url: str) -> None:
    asked: list[str] = []
    fetcher = Fetcher(WIDE, resolve=lambda host, *_, **__: asked.append(host) or [])  # type: ignore[func-returns-value]

    with pytest.raises(FetchError) as caught:
        fetcher.http(url, field="image_url")

    fetcher.close()
    assert asked == []
    assert caught.value.code == "UNHANDLED_HTTP_FILE_ERROR"
    assert caught.value.field == "image_url"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(["127.0.0.1"], id="loopback"),
        pytest.param(["169.254.169.254"], id="metadata"),
        pytest.param(["fd00::5"], id="unique local"),
        pytest.param(["::ffff:127.0.0.1"], id="mapped"),
        pytest.param(["93.184.216.34", "127.0.0.1"], id="mixed, bad one last"),
        pytest.param(["127.0.0.1", "93.184.216.34"], id="mixed, bad one first"),
        pytest.param(["93.184.216.34", "fe80::1"], id="mixed families"),
        pytest.param(["fe80::1%2"], id="zone"),
        pytest.param([], id="none"),
    ],
)
def test_an_allowed_name_with_an_address_inside_is_not_dialled(
    make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    def dial(*_: Any, **__: Any) -> socket.socket:
        raise AssertionError("dialled")

    monkeypatch.setattr(socket, "create_connection", dial)
    fetcher = make_fetcher("images.org", names={"images.org": addresses})

    with pytest.raises(FetchError):
        fetcher.http("https://images.org/secret", field="image_url")


def test_a_name_whose_dns_changes_after_the_check_gets_the_address_that_was_checked(
    authority: Authority, secure_web: FaultServer
) -> None:
    secure_web.routes["/a.png"] = Answer(200, b"pixels")
    answers = iter(["127.0.0.1", "10.99.99.99", "10.99.99.99"])
    asked: list[str] = []

    def rebinding(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(0, 0, 0, "", (next(answers), port))]

    tls = ssl.create_default_context(cafile=authority.ca_file)
    entry = f"images.hospital:{secure_web.port}=127.0.0.0/8"
    fetcher = Fetcher([entry], resolve=rebinding, tls=tls)

    assert fetcher.http(f"https://images.hospital:{secure_web.port}/a.png", field="f") == b"pixels"
    assert asked == ["images.hospital"]
    with pytest.raises(FetchError, match="does not dial"):  # and it is checked anew each time
        fetcher.http(f"https://images.hospital:{secure_web.port}/a.png", field="f")
    fetcher.close()


def test_a_pinned_connection_still_verifies_the_name(make_fetcher: MakeFetcher, secure_web: FaultServer) -> None:
    secure_web.routes["/a.png"] = Answer(200, b"pixels")
    fetcher = make_fetcher(f"other.hospital:{secure_web.port}=127.0.0.1", names={"other.hospital": ["127.0.0.1"]})

    with pytest.raises(FetchError, match=r"certificate of other\.hospital is not trusted") as caught:
        fetcher.http(f"https://other.hospital:{secure_web.port}/a.png", field="f")

    assert caught.value.code == "HTTP_ERROR"
    assert secure_web.seen == []


def test_an_unknown_authority_is_not_trusted(secure_web: FaultServer) -> None:
    fetcher = Fetcher([f"127.0.0.1:{secure_web.port}"])

    with pytest.raises(FetchError, match="not trusted"):
        fetcher.http(f"https://127.0.0.1:{secure_web.port}/", field="f")

    fetcher.close()


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("http://127.0.0.1:{other}/inside", id="to a port inside"),
        pytest.param("http://[::1]:{other}/", id="to IPv6 loopback"),
        pytest.param("http://169.254.169.254/", id="to metadata"),
        pytest.param("//127.0.0.1:{other}/", id="without a scheme"),
        pytest.param("file:///etc/passwd", id="to file"),
        pytest.param("gopher://127.0.0.1:{other}/", id="to gopher"),
        pytest.param("data:image/png;base64,AAAA", id="to data"),
        pytest.param("http://a@127.0.0.1:{other}/", id="with a user"),
        pytest.param("http://0x7f.1:{other}/", id="to a number"),
        pytest.param("", id="to nowhere new"),
    ],
)
def test_a_redirect_leads_nowhere_that_is_not_allowed(
    make_fetcher: MakeFetcher, web: FaultServer, location: str
) -> None:
    with FaultServer() as inside:
        inside.routes["/inside"] = inside.routes["/"] = Answer(200, b"secret")
        web.routes["/a.png"] = Answer(302, b"", {"location": location.format(other=inside.port)})
        fetcher = make_fetcher(f"127.0.0.1:{web.port}")

        with pytest.raises(FetchError) as caught:
            fetcher.http(f"http://127.0.0.1:{web.port}/a.png", field="image_url")

        assert caught.value.code == "UNHANDLED_HTTP_FILE_ERROR"
        assert inside.seen == []


def test_a_redirect_from_https_to_plain_http_is_refused(
    make_fetcher: MakeFetcher, web: FaultServer, secure_web: FaultServer
) -> None:
    web.routes["/a.png"] = Answer(200, b"pixels")
    secure_web.routes["/a.png"] = Answer(301, b"", {"location": f"http://127.0.0.1:{web.port}/a.png"})
    fetcher = make_fetcher("127.0.0.1")

    with pytest.raises(FetchError, match="plain http"):
        fetcher.http(f"https://127.0.0.1:{secure_web.port}/a.png", field="f")

    assert web.seen == []


def test_redirects_to_allowed_hosts_are_followed_up_to_the_limit(
    make_fetcher: MakeFetcher, web: FaultServer
) -> None:
    web.routes["/4"] = Answer(200, b"pixels")
    for hop in range(4):
        web.routes[f"/{hop}"] = Answer(307, b"", {"location": str(hop + 1)})
    fetcher = make_fetcher(f"127.0.0.1:{web.port}")

    assert fetcher.http(f"http://127.0.0.1:{web.port}/1", field="f") == b"pixels"
    with pytest.raises(FetchError, match="redirected more than 3 times"):
        fetcher.http(f"http://127.0.0.1:{web.port}/0", field="f")


def test_a_host_that_is_not_http_is_told_nothing(make_fetcher: MakeFetcher) -> None:
    def greets(connection: socket.socket, _: Any) -> None:
        connection.sendall(b"220 mail.inside ESMTP secret-banner\r\n")

    with RawServer(greets) as server:
        fetcher = make_fetcher(f"127.0.0.1:{server.port}")
        with pytest.raises(FetchError, match="does not speak HTTP") as caught:
            fetcher.http(f"http://127.0.0.1:{server.port}/a", field="f")

    assert "secret-banner" not in str(caught.value)
