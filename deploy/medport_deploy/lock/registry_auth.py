"""Credentials for registries, and the short tokens that registries give for them.

A credential goes to the registry that it is for, or to a token server under the same domain, and only over TLS or
to this machine. Source: Distribution, "Token Authentication Specification"; RFC 6750; RFC 7617.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx

from medport import _extras
from medport.errors import AuthError, ConfigError, PolicyError, ProtocolError
from medport_deploy.lock.registry_http import LOOPBACK, exchange

_CHALLENGE = re.compile(r'([a-z_]+)="([^"]*)"')
_GOOGLE = re.compile(r"(.+\.)?(pkg\.dev|gcr\.io)")
_GOOGLE_USER = "oauth2accesstoken"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@dataclass(frozen=True, slots=True)
class Credential:
    """A user and a password for one registry."""

    user: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """The ``Authorization`` header's value."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


Credentials = Callable[[str], Credential | None]
"""The credential for a registry's ``HOST[:PORT]``; ``None`` to ask as nobody."""


def nobody(host: str) -> Credential | None:
    """No credential for any registry."""
    return None


def from_docker_config(path: Path) -> Credentials:
    """The credentials that ``docker login`` wrote into a file, where no helper program keeps them.

    Raises:
        ConfigError: the file is no such file.
    """
    try:
        auths = json.loads(path.read_bytes()).get("auths", {})
        kept = {host: base64.b64decode(each["auth"]).decode() for host, each in auths.items() if each.get("auth")}
    except FileNotFoundError:
        return nobody
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as fault:
        raise ConfigError(
            f"{path.name} is no configuration of docker ({type(fault).__name__})",
            field="registry",
            remedy="log in again: docker login HOST",
        ) from None

    def given(host: str) -> Credential | None:
        user, colon, password = kept.get(host, kept.get(f"https://{host}", "")).partition(":")
        return Credential(user, password) if colon else None

    return given


def from_google(host: str) -> Credential | None:
    """The access token of Google's default credential, for Google's registries.

    Raises:
        ConfigError: google-auth is not installed.
        AuthError: the credential has expired, or cannot be renewed.
    """
    if not _GOOGLE.fullmatch(host):
        return None
    auth = _extras.load("google.auth", extra="deploy")
    transport = _extras.load("google.auth.transport.requests", extra="deploy")
    exceptions = _extras.load("google.auth.exceptions", extra="deploy")
    try:
        credentials, _ = auth.default(scopes=[_SCOPE])
        credentials.refresh(transport.Request())
    except exceptions.DefaultCredentialsError:
        return None
    except exceptions.GoogleAuthError as fault:
        raise AuthError(
            f"Google's default credential cannot be used ({type(fault).__name__})",
            field="registry",
            remedy="gcloud auth application-default login",
        ) from None
    return Credential(_GOOGLE_USER, str(credentials.token))


def from_environment() -> Credentials:
    """What ``docker login`` keeps (``DOCKER_CONFIG``), else Google's default credential for Google's registries.

    Raises:
        ConfigError: docker's file is no such file.
    """
    folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    docker = from_docker_config(Path(folder) / "config.json")
    return lambda host: docker(host) or from_google(host)


@dataclass(slots=True)
class Tokens:
    """What to put into ``Authorization``, kept by registry and scope."""

    client: httpx.Client
    credentials: Credentials
    _kept: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def held(self, host: str, scope: str) -> str | None:
        """What was good before, if anything was."""
        return self._kept.get((host, scope))

    def asked(self, host: str, scope: str, challenge: str, *, secure: bool) -> str | None:
        """What answers a challenge; ``None`` if nothing here does.

        Args:
            challenge: the header ``WWW-Authenticate``.
            secure: whether the registry itself is asked over TLS or on this machine.

        Raises:
            AuthError: the token server refuses the credential.
            PolicyError: the token server is asked over plain http.
            ProtocolError: its answer is no token.
        """
        scheme, _, rest = challenge.strip().partition(" ")
        credential = self.credentials(host) if secure else None
        if scheme.lower() == "basic":
            if credential is None:
                return None
            self._kept[host, scope] = credential.basic()
        elif scheme.lower() == "bearer":
            said = dict(_CHALLENGE.findall(rest))
            self._kept[host, scope] = f"Bearer {self._token(host, scope, said, credential)}"
        else:
            return None
        return self._kept[host, scope]

    def _token(self, host: str, scope: str, said: dict[str, str], credential: Credential | None) -> str:
        realm = urlsplit(said.get("realm", ""))
        if not realm.hostname or realm.query or realm.username is not None:
            raise ProtocolError(f"{host} names no token server", field="registry")
        if realm.scheme != "https" and realm.hostname not in LOOPBACK:
            raise PolicyError(
                f"{host} sends to a token server over plain http; nothing was sent there", field="registry"
            )
        query = {"scope": scope} | ({"service": said["service"]} if "service" in said else {})
        headers = {}
        if credential is not None and _related(host.partition(":")[0], realm.hostname):
            headers["authorization"] = credential.basic()
        status, body, _ = exchange(self.client, f"{realm.geturl()}?{urlencode(query)}", headers)
        if status != 200:
            raise AuthError(
                f"{realm.hostname} gives no token for {host} (HTTP {status})",
                field="registry",
                remedy="log in there, or ask for the role that reads its images",
            )
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,16384}", token):
            raise ProtocolError(f"{realm.hostname} answers with something else than a token", field="registry")
        return token


def _related(host: str, server: str) -> bool:
    """Whether a token server is the registry itself, or beside it under one domain."""
    if host == server:
        return True
    parent = host.partition(".")[2]
    return "." in parent and server.endswith(f".{parent}")
