"""What each form of an entry allows, and what it does not."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from medport.errors import ConfigError
from medport_local.serving.fetch.address import METADATA_ADDRESSES, is_public
from medport_local.serving.fetch.allow import AllowList
from medport_local.serving.fetch.target import parse


def admits(entries: list[str], url: str, address: str | None = None) -> bool:
    """Whether the URL is allowed; with an address, whether its host may have that one."""
    permit = AllowList(entries).host(parse(url))
    return permit is not None and (address is None or permit.admits(ip_address(address)))


@pytest.mark.parametrize(
    ("entry", "url", "address"),
    [
        ("images.org", "https://images.org/a", "93.184.216.34"),
        ("images.org", "https://IMAGES.org/a", "93.184.216.34"),
        ("http://images.org", "http://images.org/a", "93.184.216.34"),
        ("http://images.org", "https://images.org/a", "93.184.216.34"),
        ("https://images.org", "https://images.org/a", "93.184.216.34"),
        ("images.org:8443", "https://images.org:8443/a", "93.184.216.34"),
        ("images.org:8080", "http://images.org:8080/a", "93.184.216.34"),
        ("*.images.org", "https://eu.images.org/a", "93.184.216.34"),
        ("*.images.org", "https://a.b.images.org/a", "93.184.216.34"),
        ("pacs=10.0.0.0/8", "https://pacs/a", "10.1.2.3"),
        ("pacs=10.0.0.0/8", "http://pacs/a", "10.1.2.3"),
        ("pacs:8042=10.0.0.0/8,fd12::/16", "http://pacs:8042/a", "fd12::1"),
        ("10.1.2.3", "http://10.1.2.3:8042/a", "10.1.2.3"),
        ("10.1.2.3:8042", "http://10.1.2.3:8042/a", "10.1.2.3"),
        ("::1", "http://[::1]:99/a", "::1"),
        ("[::1]:99", "http://[0:0::1]:99/a", "::1"),
        ("localhost", "http://localhost:1234/a", "127.0.0.1"),
        ("localhost", "http://localhost:1234/a", "::1"),
        ("localhost:1234", "https://localhost:1234/a", "127.0.0.1"),
    ],
)
def test_an_entry_allows_what_it_names(entry: str, url: str, address: str) -> None:
    assert admits([entry], url, address)


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("images.org", "http://images.org/a"),  # plain http is not what a bare public host means
        ("images.org", "https://images.org:8443/a"),
        ("images.org", "https://eu.images.org/a"),
        ("images.org", "https://images.org.evil.com/a"),
        ("images.org", "https://notimages.org/a"),
        ("https://images.org", "http://images.org/a"),
        ("images.org:8443", "https://images.org/a"),
        ("*.images.org", "https://images.org/a"),
        ("*.images.org", "https://notimages.org/a"),
        ("*.0.0.1.org", "https://127.0.0.1/a"),
        ("10.0.0.0/8", "https://10.1.2.3/a"),
        ("10.1.2.3:8042", "http://10.1.2.3:8043/a"),
        ("localhost:1234", "http://localhost:1235/a"),
        ("localhost", "http://127.0.0.1/a"),
        ("gs://images", "https://images/a"),
        ("https://images.org/dicomWeb", "https://images.org/dicomWeb/a"),
        ("*.google.internal", "http://metadata.google.internal/a"),
    ],
)
def test_an_entry_allows_nothing_else(entry: str, url: str) -> None:
    assert not admits([entry], url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fec0::1", "fd00::1",
        "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:93.184.216.34", "::127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00:1::1", "100::1",
    ],
)  # fmt: skip
def test_an_allowed_name_may_not_have_an_address_inside(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not admits(["images.org", "http://images.org", "*.org"], "https://images.org/", address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_an_allowed_name_may_have_a_public_address(address: str) -> None:
    assert admits(["images.org"], "https://images.org/", address)


def test_a_network_permits_its_addresses_to_allowed_names_only() -> None:
    entries = ["images.org", "10.0.0.0/8"]

    assert admits(entries, "https://images.org/", "10.1.2.3")
    assert not admits(entries, "https://images.org/", "192.168.1.1")
    assert not admits(entries, "https://other.org/")


def test_an_address_with_a_port_permits_no_other_port() -> None:
    entries = ["images.org", "10.1.2.3:8042"]

    assert not admits(entries, "https://images.org/", "10.1.2.3")


def test_a_host_with_addresses_has_no_others() -> None:
    assert not admits(["pacs.org=10.0.0.0/8"], "https://pacs.org/", "93.184.216.34")


def test_localhost_means_loopback_whatever_it_resolves_to() -> None:
    assert not admits(["localhost"], "http://localhost/", "10.0.0.1")
    assert not admits(["localhost"], "http://localhost/", "93.184.216.34")


@pytest.mark.parametrize("address", sorted(str(a) for a in METADATA_ADDRESSES))
def test_metadata_addresses_need_an_entry_of_their_own(address: str) -> None:
    wide = ["images.org", "images.org=0.0.0.0/0,::/0", "0.0.0.0/0", "::/0"]

    assert not admits(wide, "https://images.org/", address)
    assert admits([*wide, address], "https://images.org/", address)


def test_a_metadata_address_inside_an_ipv6_one_is_seen() -> None:
    wide = ["images.org=0.0.0.0/0,::/0"]

    assert not admits(wide, "https://images.org/", "::ffff:169.254.169.254")
    assert not admits(wide, "https://images.org/", "64:ff9b::a9fe:a9fe")
    assert not admits(wide, "https://images.org/", "2002:a9fe:a9fe::")


def test_the_name_of_the_metadata_server_can_be_allowed_by_itself() -> None:
    entries = ["http://metadata.google.internal", "169.254.169.254"]

    assert admits(entries, "http://metadata.google.internal/", "169.254.169.254")


@pytest.mark.parametrize(
    ("entry", "name", "allowed"),
    [
        ("gs://scans", "a/b.png", True),
        ("scans", "a/b.png", True),
        ("gs://scans/", "a/b.png", True),
        ("gs://scans/a", "a/b.png", True),
        ("gs://scans/a/", "a/b.png", True),
        ("gs://scans/a/b.png", "a/b.png", True),
        ("gs://scans/a", "ab/c.png", False),
        ("gs://scans/a", "b.png", False),
        ("gs://other", "a/b.png", False),
        ("scans.org:443", "a/b.png", False),
    ],
)
def test_a_bucket_is_allowed_down_to_its_prefix(entry: str, name: str, allowed: bool) -> None:
    assert AllowList([entry]).bucket("scans", name) is allowed


@pytest.mark.parametrize(
    ("entry", "store", "allowed"),
    [
        ("https://pacs.org/a/dicomWeb", "/a/dicomWeb", True),
        ("https://pacs.org/a/dicomWeb/", "/a/dicomWeb", True),
        ("https://pacs.org/a", "/a/dicomWeb", True),
        ("pacs.org", "/a/dicomWeb", True),
        ("https://pacs.org/a/dicomWeb", "/a/dicomWebber", False),
        ("https://pacs.org/a/dicomWeb", "/b/dicomWeb", False),
        ("https://pacs.org/a/dicomWeb", "", False),
        ("http://pacs.org/a/dicomWeb", "/a/dicomWeb", False),
        ("https://pacs.org:8443/a/dicomWeb", "/a/dicomWeb", False),
    ],
)
def test_a_store_is_allowed_by_its_address(entry: str, store: str, allowed: bool) -> None:
    target = parse(f"https://pacs.org{store}/studies/1")

    assert (AllowList([entry]).store(target, store) is not None) is allowed


@pytest.mark.parametrize(
    "entry",
    [
        "", "*", "*.", "*.127.0.0.1", "host/path", "ftp://host", "file:///etc", "https://", "https://u@host",
        "host:0", "host:99999", "host:http", "10.0.0.1/8", "10.0.0.0/33", "0x7f.1", "127.1", "host.",
        "héllo.org", "gs://", "gs://A", "gs://b/../c", "host=everything", "host=", "gs://b=10.0.0.0/8", "https://host/a?b=c",
        "https://host/a/../b", "https://host/%2e%2e/b", "a b", "[::1", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_an_entry_that_is_none_of_the_forms_is_named(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AllowList([entry])

    assert repr(entry) in str(caught.value)
    assert caught.value.remedy


def test_the_list_is_empty_by_default_and_a_network_alone_allows_nothing() -> None:
    assert AllowList([]).is_empty
    assert AllowList(["10.0.0.0/8"]).is_empty
