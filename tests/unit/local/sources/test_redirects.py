"""Where a hub may send us on to."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import close_session
from support.certificates import Authority
from support.hub_server import hub_server
from support.proxy import playing

from medport.errors import ConfigError, PolicyError
from medport_local.sources.redirects import Redirects

from .conftest import MODEL

HUB = "https://huggingface.co"
FROM = f"{HUB}/google/toy/resolve/main/model.safetensors"
NAMES = {
    "huggingface.co": ["18.155.68.44"],
    "cdn-lfs.hf.co": ["18.160.1.1", "2600:9000:2000::1"],
    "mixed.example": ["18.160.1.1", "10.0.0.1"],
    "mirror.example": ["10.1.2.3"],
    "storage.mirror.example": ["10.1.2.4"],
}


def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, Any, Any, Any, Any]]:
    if host not in NAMES:
        raise OSError("no such name")
    return [(0, 0, 0, "", (address, port)) for address in NAMES[host]]


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://cdn-lfs.hf.co/x?sig=1", "https://cdn-lfs.hf.co/x?sig=1"),
        ("https://cdn-lfs.hf.co:8443/x", "https://cdn-lfs.hf.co:8443/x"),
        ("/api/models/google/other", f"{HUB}/api/models/google/other"),
        ("other.safetensors", f"{HUB}/google/toy/resolve/main/other.safetensors"),
        ("//cdn-lfs.hf.co/x", "https://cdn-lfs.hf.co/x"),
        ("https://unknown-here.example/x", "https://unknown-here.example/x"),
    ],
)
def test_storage_hosts_and_the_hub_itself_are_asked(location: str, target: str) -> None:
    assert Redirects(HUB, resolve=resolve).target(FROM, location) == target


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn-lfs.hf.co/x",
        "http://huggingface.co/x",
        "file:///etc/passwd",
        "gopher://cdn-lfs.hf.co/x",
        "data:,x",
        "https://user@cdn-lfs.hf.co/x",
        "https://user:secret@cdn-lfs.hf.co/x",
        "https://cdn-lfs.hf.co:99999/x",
        "https://cdn-lfs.hf.co/\r\nx: y",
        "https://cdn-lfs.hf.co/é",
        "https://127.0.0.1/x",
        "https://0x7f.1/x",
        "https://2130706433/x",
        "https://10.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://[64:ff9b::a00:1]/x",
        "https://[fd00::1]/x",
        "https://169.254.169.254/latest/meta-data",
        "https://224.0.0.1/x",
        "https://localhost/x",
        "https://intranet/x",
        "https://pacs.local/x",
        "https://metadata.google.internal/x",
        "https://mixed.example/x",
        "https://mirror.example/x",
        "https://" + "a" * 9000,
        "https://a..b/x",
        "https://.example/x",
        "https://" + "a" * 64 + ".example/x",
        "https://" + "a." * 130 + "example/x",
    ],
)
def test_what_is_no_storage_host_is_refused(location: str) -> None:
    with pytest.raises(PolicyError, match="redirects"):
        Redirects(HUB, resolve=resolve).target(FROM, location)


def test_a_mirror_inside_may_send_to_hosts_inside() -> None:
    redirects = Redirects("https://mirror.example", resolve=resolve)

    location = "https://storage.mirror.example/x"

    assert redirects.target("https://mirror.example/a", location) == location
    with pytest.raises(PolicyError):
        redirects.target("https://mirror.example/a", "https://169.254.169.254/x")
    with pytest.raises(PolicyError):
        redirects.target("https://mirror.example/a", "http://storage.mirror.example/x")


def test_a_mirror_over_plain_http_may_send_to_plain_http() -> None:
    location = "http://10.1.2.4:9000/x"

    assert Redirects("http://10.1.2.3", resolve=resolve).target("http://10.1.2.3/a", location) == location


@pytest.mark.parametrize(
    "endpoint", ["https://a..b", "https://" + "a" * 64 + ".example", "hub.example", "https://"]
)
def test_what_no_request_can_be_sent_to_is_no_hub(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a hub"):
        Redirects(endpoint, resolve=resolve)


@pytest.mark.parametrize("url", [f"{HUB}/x", "https://HuggingFace.co:443/x", "https://huggingface.co./x"])
def test_the_hub_is_known_by_its_origin(url: str) -> None:
    assert Redirects(HUB, resolve=resolve).is_hub(url)


@pytest.mark.parametrize(
    "url",
    ["http://huggingface.co/x", "https://huggingface.co:8443/x", "https://cdn-lfs.hf.co/x", "https://hf.co/x"],
)
def test_another_origin_is_not_the_hub(url: str) -> None:
    assert not Redirects(HUB, resolve=resolve).is_hub(url)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://huggingface.co", "https://", "https://a@b", ""])
def test_what_is_no_address_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="address of a hub"):
        Redirects(endpoint)


def test_the_public_hub_sends_nobody_into_the_network(
    authority: Authority,
    fetch: Callable[..., Any],
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    certificate = authority.issue("127.0.0.1")
    trusted = ssl.create_default_context(cafile=str(authority.ca_file))
    with hub_server(hub_tls=certificate, storage_tls=certificate) as hub:
        hub.add(MODEL, files)
        with playing(authority, "huggingface.co", hub.endpoint.removeprefix("https://"), trusted) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            close_session()
            with pytest.raises(PolicyError, match="inside the network"):
                fetch(endpoint=HUB)
            close_session()

    assert hub.asked("hub")
    assert hub.asked("storage") == []
