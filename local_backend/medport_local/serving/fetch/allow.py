"""The allow-list: what an operator's ``--allow-fetch`` entries let this server fetch. Empty, it lets nothing.

========================================  ======================================================================
entry                                     allows
========================================  ======================================================================
``host``                                  https on port 443 of that host, as long as its addresses are public
``http://host``                           … and plain http on port 80
``host:port``                             https and http on that port
``*.host``, ``*.host:port``               the same for every host below it, not for itself
``host=10.0.0.0/8,fd12::/16``             the host with these addresses and no others; https and http
``10.1.2.3``, ``[fd12::5]:8080``          that address as a host, and for allowed names that resolve to it
``10.0.0.0/8``                            these addresses for allowed names; no URL of its own
``localhost``, ``localhost:port``         loopback; without a port any port
``https://host/path``                     the DICOMweb store there, or those below it; http where it says http
``gs://bucket``, ``gs://bucket/prefix``   objects of the bucket, or those at and below the prefix
a bare word such as ``scans``             both the bucket and the host of that name
========================================  ======================================================================

A host's entry also allows the DICOMweb stores of the host. ``=ADDRESSES`` may follow each form that has a host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from medport.errors import ConfigError
from medport_local.serving.fetch.address import Network, Permit
from medport_local.serving.fetch.target import PORTS, Address, Scheme, Target, parse, split_authority

BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
STORE_PATH = re.compile(r"(?:/[A-Za-z0-9._~:-]+)*")
_METADATA_NAMES = frozenset({
    "metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
})  # fmt: skip
_LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1"))
_REMEDY = (
    "give HOST, HOST:PORT, HOST=ADDRESSES, a network, gs://BUCKET or the https:// address of a DICOMweb store"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostRule:
    host: str
    below: bool = False
    """Every host below it, and not itself."""
    port: int | None = None
    any_port: bool = False
    plain: bool = False
    """http as well as https."""
    networks: tuple[Network, ...] | None = None
    """The only addresses it may have; ``None``: any public one."""

    def covers(self, target: Target) -> bool:
        if self.below:
            named = target.address is None and target.host.endswith(f".{self.host}")
        else:
            named = target.host == self.host
        return named and (self.plain or target.scheme == "https") and self._has(target.port, target.scheme)

    def _has(self, port: int, scheme: Scheme) -> bool:
        if self.port is not None:
            return port == self.port
        return self.any_port or port == PORTS[scheme]


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoreRule:
    where: _HostRule
    scheme: Scheme
    path: str

    def covers(self, target: Target, store: str) -> bool:
        return (
            target.scheme == self.scheme
            and self.where.covers(target)
            and (store == self.path or store.startswith(f"{self.path}/"))
        )


@dataclass(frozen=True, slots=True)
class _BucketRule:
    bucket: str
    prefix: str = ""

    def covers(self, bucket: str, name: str) -> bool:
        below = self.prefix if self.prefix.endswith("/") else f"{self.prefix}/"
        return bucket == self.bucket and (not self.prefix or name == self.prefix or name.startswith(below))


@dataclass(frozen=True, slots=True)
class _Grant:
    """Addresses that allowed names may have."""

    network: Network
    port: int | None = None


class AllowList:
    """What the entries allow. Immutable.

    Raises:
        ConfigError: an entry is none of the forms; names it.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._hosts: list[_HostRule] = []
        self._stores: list[_StoreRule] = []
        self._buckets: list[_BucketRule] = []
        self._grants: list[_Grant] = []
        for entry in entries:
            self._read(entry.strip())

    @property
    def is_empty(self) -> bool:
        return not (self._hosts or self._stores or self._buckets)

    def host(self, target: Target) -> Permit | None:
        """The addresses that may be dialled for a URL, or ``None`` where its host is not allowed."""
        by_name = target.host in _METADATA_NAMES  # which a wildcard never means
        return self._permit(
            [r for r in self._hosts if r.covers(target) and not (by_name and r.below)], target.port
        )

    def store(self, target: Target, path: str) -> Permit | None:
        """The same for the DICOMweb store at ``path``; a host's own entry allows its stores too."""
        named = [rule.where for rule in self._stores if rule.covers(target, path)]
        return self._permit(named, target.port) or self.host(target)

    def names_store(self, target: Target, path: str) -> bool:
        """Whether an entry names this store, rather than its whole host."""
        return any(rule.covers(target, path) for rule in self._stores)

    def bucket(self, bucket: str, name: str) -> bool:
        return any(rule.covers(bucket, name) for rule in self._buckets)

    def service(self, target: Target) -> Permit:
        """The addresses of a service that allowed things stand behind, such as Cloud Storage behind buckets."""
        return self.host(target) or self._permit([_HostRule(host=target.host)], target.port) or Permit()

    def _permit(self, rules: Sequence[_HostRule], port: int) -> Permit | None:
        if not rules:
            return None
        own = [network for rule in rules for network in rule.networks or ()]
        granted = [grant.network for grant in self._grants if grant.port in (None, port)]
        return Permit((*own, *granted), public=any(rule.networks is None for rule in rules))

    def _read(self, entry: str) -> None:
        body, equals, addresses = entry.rpartition("=")
        if not equals:
            body, addresses = entry, ""
        try:
            networks = tuple(ip_network(text.strip()) for text in addresses.split(",")) if equals else None
            if body.lower().startswith("gs://") and not equals:
                self._buckets.append(_bucket(body[5:]))
            elif "://" in body:
                self._read_url(body, networks)
            elif "/" in body and not equals:
                self._grants.append(_Grant(ip_network(body)))
            else:
                self._read_host(body, networks)
        except ValueError:
            raise ConfigError(
                f"{entry!r} is not something to fetch from", field="allow-fetch", remedy=_REMEDY
            ) from None

    def _read_url(self, text: str, networks: tuple[Network, ...] | None) -> None:
        target = parse(text)
        port = target.port if target.port_given else None
        path = target.path.rstrip("/")
        rule = _rule(target.host, port, target.address, networks, plain=target.scheme == "http")
        if not path:
            self._hosts.append(rule)
            return
        if STORE_PATH.fullmatch(path) is None or has_dots(path):
            raise ValueError("not the path of a store")
        self._stores.append(_StoreRule(where=rule, scheme=target.scheme, path=path))

    def _read_host(self, text: str, networks: tuple[Network, ...] | None) -> None:
        if text.startswith("*."):
            name, port, address = split_authority(text[2:])
            if address is not None:
                raise ValueError("an address has nothing below it")
            plain = port is not None or networks is not None
            self._hosts.append(_HostRule(host=name, below=True, port=port, plain=plain, networks=networks))
            return
        name, port, address = _authority(text)
        plain = port is not None or networks is not None
        self._hosts.append(_rule(name, port, address, networks, plain=plain))
        if address is not None:
            self._grants.append(_Grant(ip_network(address), port))
        elif port is None and networks is None and BUCKET.fullmatch(name):
            self._buckets.append(_BucketRule(name))


def has_dots(path: str) -> bool:
    """Whether a path has a segment that means this folder or the one above."""
    return any(segment in (".", "..") for segment in path.split("/"))


def _rule(
    name: str, port: int | None, address: Address | None, networks: tuple[Network, ...] | None, *, plain: bool
) -> _HostRule:
    """An entry's host; one inside by its very name, an address or localhost, needs neither port nor TLS."""
    if address is not None:
        networks = (ip_network(address),)
    elif name == "localhost" and networks is None:
        networks = _LOOPBACK
    inside = address is not None or name == "localhost"
    return _HostRule(host=name, port=port, any_port=inside, plain=plain or inside, networks=networks)


def _authority(text: str) -> tuple[str, int | None, Address | None]:
    if "%" in text:
        raise ValueError("an address with a zone")
    try:
        bare = ip_address(text)  # IPv6 without its brackets
    except ValueError:
        return split_authority(text)
    return str(bare), None, bare


def _bucket(text: str) -> _BucketRule:
    bucket, _, prefix = text.partition("/")
    if BUCKET.fullmatch(bucket) is None or has_dots(prefix):
        raise ValueError("not a bucket")
    return _BucketRule(bucket, prefix)
