"""Models of a hub that speaks Hugging Face's API: a branch becomes a commit, and everything is read by the commit.

Wire: ``/api/models/ID/revision/REVISION?blobs=true`` lists a commit with git's ids and the sha256 of large files,
``/ID/resolve/COMMIT/FILE`` gives a file or redirects to where it is stored. Refusals say their kind in
``X-Error-Code``. Source: huggingface_hub 2.4, ``HfApi.model_info``, ``hf_hub_url``, ``hf_raise_for_status``.
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from medport._extras import load
from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    Forbidden,
    MedportError,
    NotFound,
    ProtocolError,
    class_for,
)
from medport_local.model_identity import known_model
from medport_local.snapshot import MANIFEST
from medport_local.sources.hub_http import HubConnection
from medport_local.sources.redirects import Resolver
from medport_local.sources.source import Offer, Offered
from medport_local.sources.wanted import choose
from medport_local.store import Terms

logger = logging.getLogger(__name__)

ENDPOINT = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_LICENCE = re.compile(r"(?i)licen[cs]e(\.md|\.txt)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_LICENCE_BYTES = 2**20
_MAX_FILES = 10_000


class HubSource:
    """One repository of a hub.

    Args:
        repository: ``OWNER/NAME``.
        revision: a commit, branch or tag; the default branch if none.
        endpoint: the hub's address.
        token: for gated or private repositories. Goes to the endpoint alone, and is never written or logged.
        token_from: what to call it in errors, such as the environment variable that held it.
        offline: ask nobody, whatever is asked of this source.
        session, resolve, sleep: as ``HubConnection`` takes them.
        now: the time of the pull: the hub does not say when terms were accepted, only that they are.
        field: what to call the repository in errors.

    Raises:
        ConfigError: the repository, the revision, the endpoint or the token cannot be one.
    """

    def __init__(
        self,
        repository: str,
        revision: str | None = None,
        *,
        endpoint: str = ENDPOINT,
        token: SecretStr | None = None,
        token_from: str = "--token-env NAME",  # noqa: S107  no token, but how to give one
        offline: bool = False,
        session: Any = None,
        resolve: Resolver = socket.getaddrinfo,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        field: str = "source",
    ) -> None:
        if REPOSITORY.fullmatch(repository) is None or ".." in repository:
            raise ConfigError("is not OWNER/NAME", field=field, remedy="write it as google/medgemma-4b-it")
        if revision is not None and (_REVISION.fullmatch(revision) is None or ".." in revision):
            raise ConfigError(
                "is no revision",
                field=field,
                remedy="write it as google/medgemma-4b-it@COMMIT, or a branch or tag",
            )
        self._repository = repository
        self._revision = revision
        self._endpoint = endpoint.rstrip("/")
        self._has_token, self._token_from = token is not None, token_from
        self._offline = offline
        self._now = now
        self._field = field
        self._commit: str | None = None
        self._files: Mapping[str, Offered] = {}
        self._hub = HubConnection(
            self._endpoint, token, explain=self._explained, session=session, resolve=resolve, sleep=sleep
        )

    @property
    def reference(self) -> str | None:
        """``OWNER/NAME@COMMIT``, where a commit was asked for."""
        if self._revision is None or COMMIT.fullmatch(self._revision) is None:
            return None
        return f"{self._repository}@{self._revision}"

    def offer(self) -> Offer:
        """List the commit.

        Raises:
            ConnectionFailed: the hub cannot be reached, or nobody is to be asked.
            AuthError: the repository is gated or private, and the token is missing or not enough.
            NotFound: there is no such repository, branch, tag or commit.
            ConfigError: it holds no safetensors weights, or goes by another name now.
            ProtocolError: the answer is not one of a hub.
        """
        if self._offline:
            raise ConnectionFailed(
                f"{self._repository} is not in the store, and HF_HUB_OFFLINE forbids asking the hub",
                field=self._field,
                remedy="unset it, or name a directory, gs://… or a bundle instead",
            )
        requested = self._revision or "main"
        info = self._info(requested)
        commit = str(info.sha)
        listed = {sibling.rfilename: sibling for sibling in info.siblings}
        chosen = choose(listed, field=self._field)
        files = {name: self._offered(listed[name]) for name in chosen.wanted}
        self._commit, self._files = commit, files
        said = list(chosen.said)
        if MANIFEST in listed:
            said.append(f"its {MANIFEST} is left: the store writes its own")
        if requested != commit:
            said.insert(0, f"{requested} is {commit}; pin {self._repository}@{commit}")
        return Offer(
            identity=f"hub {self._endpoint} {self._repository} {commit}",
            source="hub",
            model_id=str(info.id),  # as the hub spells it
            requested=requested,
            revision=commit,
            said=tuple(said),
            terms=self._terms(info, listed),
            files=files,
        )

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        """See ``Source.read``."""
        offered = self._files[name]
        assert offered.size_bytes is not None
        return self._hub.stream(self._file(name), name=name, offset=offset, size_bytes=offered.size_bytes)

    def close(self) -> None:
        """Nothing: the connections are huggingface_hub's, and others use them as well."""

    def _info(self, requested: str) -> Any:
        models = load("huggingface_hub.hf_api", extra="local")
        url = f"{self._endpoint}/api/models/{self._repository}/revision/{quote(requested, safe='')}?blobs=true"
        said = self._hub.json(url)
        try:
            info = models.ModelInfo(**said)
        except (TypeError, KeyError, ValueError, AttributeError):
            info = None
        if info is None or not COMMIT.fullmatch(str(info.sha)) or not _is_listing(info.siblings):
            raise ProtocolError(
                "the answer does not describe a model", field="endpoint", remedy="check HF_ENDPOINT"
            )
        if COMMIT.fullmatch(requested) and info.sha != requested:
            raise ProtocolError(
                "the hub answers with another commit", field=self._field, remedy="check HF_ENDPOINT"
            )
        if str(info.id).lower() != self._repository.lower():
            raise ConfigError(
                f"goes by the name {info.id!s:.200} on the hub",
                field=self._field,
                remedy="give that name, if it is what you mean",
            )
        return info

    def _offered(self, sibling: Any) -> Offered:
        blob, large = str(sibling.blob_id or ""), sibling.lfs
        sha256 = str(large.sha256) if large is not None else None
        known = _SHA256.fullmatch(sha256) if sha256 is not None else COMMIT.fullmatch(blob)
        size = large.size if large is not None else sibling.size
        if not known or type(size) is not int or size < 0:
            raise ProtocolError(
                f"the hub does not say what {sibling.rfilename} is", field="endpoint", remedy="check HF_ENDPOINT"
            )
        return Offered(
            name=sibling.rfilename,
            size_bytes=size,
            sha256=sha256,
            version=sha256 or blob,
            git_blob_sha1=blob if sha256 is None else None,
        )

    def _terms(self, info: Any, listed: Mapping[str, Any]) -> Terms:
        card = info.card_data
        said = {key: getattr(card, key, None) for key in ("license", "license_name", "license_link")}
        known = known_model(self._repository)
        gated = bool(info.gated)
        name = known.terms.name if known else said["license_name"] or said["license"] or "not stated"
        link = said["license_link"] if str(said["license_link"] or "").startswith("https://") else None
        texts = [each for each in listed if _LICENCE.fullmatch(each)]
        who = self._name_of_account() if self._has_token else None
        return Terms(
            name=f"{name!s:.200}",
            url=known.terms.url if known else f"{link or self._endpoint + '/' + self._repository:.1000}",
            gated=gated,
            accepted_by=who if gated else None,
            accepted_at=self._now().isoformat(timespec="seconds") if gated and who else None,
            licence_sha256=self._sha256_of(min(texts)) if texts else None,
        )

    def _name_of_account(self) -> str | None:
        """Whose token it is; ``None`` where the hub does not say: a pull does not hang on that.

        Raises:
            AuthError: the hub does not know the token.
        """
        try:
            said = self._hub.json(f"{self._endpoint}/api/whoami-v2", attempts=1)
        except MedportError as fault:
            # A mirror that knows no accounts, a token that may read models alone, a hub that is busy.
            if isinstance(fault, AuthError) and not isinstance(fault, Forbidden):
                raise
            logger.info("the hub does not say whose token this is (%s)", type(fault).__name__)
            return None
        name = said.get("name") if isinstance(said, dict) else None
        return f"{name:.200}" if isinstance(name, str) and name.isprintable() else None

    def _sha256_of(self, name: str) -> str:
        return hashlib.sha256(self._hub.whole(self._file(name), limit=_MAX_LICENCE_BYTES)).hexdigest()

    def _file(self, name: str) -> str:
        assert self._commit is not None
        return f"{self._endpoint}/{self._repository}/resolve/{self._commit}/{quote(name)}"

    def _explained(self, status: int, headers: Mapping[str, str]) -> MedportError:
        code = headers.get("x-error-code", "")
        page = f"{self._endpoint}/{self._repository}"
        if code == "GatedRepo":
            return self._gated(page)
        if code == "RevisionNotFound":
            return NotFound(
                f"{self._repository} has no such branch, tag or commit", field=self._field, remedy=f"see {page}"
            )
        if code == "RepoNotFound" or (status == 401 and not self._has_token) or status == 404:
            return NotFound(
                f"the hub has no {self._repository}, or hides it",
                field=self._field,
                remedy=f"check the name; for a private repository give {self._token_from}",
            )
        if status == 401:
            return AuthError("the hub does not know this token", field=self._token_from, remedy="make a new one")
        if status == 403:
            return Forbidden(
                f"the hub does not let this token read {self._repository}",
                field=self._token_from,
                remedy="give one that may",
            )
        return class_for(status)(f"the hub refuses (HTTP {status})", field="endpoint", remedy="check HF_ENDPOINT")

    def _gated(self, page: str) -> AuthError:
        if self._has_token:
            return Forbidden(
                f"{self._repository} is gated, and this token's account may not read it",
                field=self._token_from,
                remedy=f"accept its terms at {page} with that account; a fine-grained token needs "
                '"Read access to contents of all public gated repos you can access" as well',
            )
        return AuthError(
            f"{self._repository} is gated: its terms must be accepted first",
            field=self._field,
            remedy=f"accept them at {page}, then give {self._token_from} with a read token of that account",
        )


def _is_listing(siblings: object) -> bool:
    if not isinstance(siblings, list) or not 0 < len(siblings) <= _MAX_FILES:
        return False
    return all(isinstance(sibling.rfilename, str) for sibling in siblings)
