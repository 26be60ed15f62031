"""Models of the hub: a branch becomes a commit, and every file of it a sha256.

Large files have their sha256 in the hub's listing; small ones are fetched, compared with git's id in the listing,
and hashed here. Source: huggingface_hub 2.4, ``HfApi.model_info``, ``hf_hub_url``, ``get_session``.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import tenacity
from pydantic import SecretStr

from medport import _extras
from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    Forbidden,
    MedportError,
    NotFound,
    PolicyError,
    ProtocolError,
    VerificationError,
    class_for,
)
from medport.lock import LockedFile
from medport_deploy.lock import terms as known_terms
from medport_deploy.lock.model_source import FoundModel, family_of, locked
from medport_deploy.lock.pinned import chosen
from medport_deploy.lock.terms import Terms

ENDPOINT = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LICENCE = re.compile(r"(?i)licen[cs]e(\.md|\.txt)?")
_MAX_SMALL_BYTES = 64 * 2**20
"""Of a file that the hub keeps in git itself; its own limit is 10 MB."""
_MAX_FILES = 10_000
_TIMEOUT_S = 30.0
_ATTEMPTS = 4


class Hub:
    """One hub.

    Args:
        endpoint: its address.
        token: for gated models. Goes to the endpoint alone.
        sleep: waits between attempts.

    Raises:
        ConfigError: huggingface_hub is not installed.
        PolicyError: a token would go over plain http to another machine.
    """

    def __init__(
        self,
        *,
        endpoint: str = ENDPOINT,
        token: SecretStr | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._library = _extras.load("huggingface_hub", extra="deploy")
        self._errors = _extras.load("huggingface_hub.errors", extra="deploy")
        self._endpoint = endpoint.rstrip("/")
        if token is not None and not re.match(
            r"https://|http://(localhost|127\.0\.0\.1)[:/]", f"{self._endpoint}/"
        ):
            raise PolicyError(
                "the hub's token is not sent over plain http", field="HF_ENDPOINT", remedy="give https://HOST"
            )
        self._token = token
        self._sleep = sleep

    @classmethod
    def from_environment(cls) -> Hub:
        """The hub of ``HF_ENDPOINT`` with the token of ``HF_TOKEN``, as its own programs take them."""
        token = os.environ.get("HF_TOKEN")
        return cls(endpoint=os.environ.get("HF_ENDPOINT") or ENDPOINT, token=SecretStr(token) if token else None)

    def find(self, model_id: str, requested: str, *, field: str) -> FoundModel:
        """One commit, down to the last byte.

        Args:
            model_id: ``OWNER/NAME``.
            requested: a commit, branch or tag.
            field: what to call it in errors.

        Raises:
            NotFound: the hub has no such model, branch, tag or commit, or hides it.
            AuthError: the model is gated and the token missing, or its account has not accepted the terms.
            VerificationError: the weights are pickles, the configuration is of no model that is served, or a file
                is not what the listing says.
            ConnectionFailed: the hub cannot be reached.
            ProtocolError: its answer cannot be read.
        """
        info = self._asked(lambda: self._info(model_id, requested), model_id, field)
        commit = str(info.sha)
        if not _COMMIT.fullmatch(commit) or (_COMMIT.fullmatch(requested) and commit != requested):
            raise ProtocolError("the hub answers with another commit", field=field, remedy="check HF_ENDPOINT")
        if str(info.id).casefold() != model_id.casefold():
            raise ConfigError(
                f"goes by the name {info.id!s:.100} on the hub",
                field=field,
                remedy="write that name, if you mean it",
            )
        siblings = info.siblings or []
        if len(siblings) > _MAX_FILES:
            raise ProtocolError(f"the hub lists more than {_MAX_FILES} files", field=field)
        listed = {str(each.rfilename): each for each in siblings}
        names = chosen(listed, field=field)
        if "config.json" not in names:
            raise VerificationError("holds no config.json", field=field, remedy="check the model's name")
        files: dict[str, LockedFile] = {}
        config = b""
        for name in names:
            files[name], body = self._file(str(info.id), commit, listed[name], field)
            if name == "config.json":
                config = body or self._small(str(info.id), commit, name, field)
        model = locked(str(info.id), commit, family_of(config, field=field), files)
        left = tuple(name for name in sorted(listed) if name not in files)
        return FoundModel(model, requested, self._terms(info, listed, field), left)

    def _info(self, model_id: str, requested: str) -> Any:
        api = self._library.HfApi(endpoint=self._endpoint, token=self._secret() or False, library_name="medport")
        return api.model_info(model_id, revision=requested, files_metadata=True, timeout=_TIMEOUT_S)

    def _file(self, model_id: str, commit: str, sibling: Any, field: str) -> tuple[LockedFile, bytes]:
        """What a file holds, and its bytes where they were fetched."""
        name, large = str(sibling.rfilename), sibling.lfs
        if large is not None:
            sha256, size = str(large.sha256), large.size
            if not _SHA256.fullmatch(sha256) or type(size) is not int or size < 0:
                raise ProtocolError(
                    f"the hub does not say what {name} is", field=field, remedy="check HF_ENDPOINT"
                )
            return LockedFile(sha256=sha256, size_bytes=size), b""
        body = self._small(model_id, commit, name, field)
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
        if sibling.blob_id is not None and sibling.blob_id != blob:
            raise VerificationError(f"{name} is not what the hub lists", field=field, remedy="run the same again")
        return LockedFile(sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body)), body

    def _small(self, model_id: str, commit: str, name: str, field: str) -> bytes:
        url = self._library.hf_hub_url(model_id, name, revision=commit, endpoint=self._endpoint)
        body: bytes = self._asked(lambda: self._fetched(url, name, field), model_id, field)
        return body

    def _fetched(self, url: str, name: str, field: str) -> bytes:
        # The session drops the token where a redirect leads to another host.
        headers = self._library.utils.build_hf_headers(token=self._secret() or False, library_name="medport")
        session = self._library.get_session()
        with session.stream("GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True) as answer:
            if url.startswith("https:") and str(answer.url.scheme) != "https":
                raise PolicyError(f"the hub sends on to plain http for {name}", field=field)
            self._library.utils.hf_raise_for_status(answer)
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > _MAX_SMALL_BYTES:
                    raise ProtocolError(f"{name} is larger than {_MAX_SMALL_BYTES // 2**20} MiB", field=field)
            return bytes(body)

    def _terms(self, info: Any, listed: Mapping[str, Any], field: str) -> Terms | None:
        if (known := known_terms.known(str(info.id))) is not None:
            return known
        card = {key: getattr(info.card_data, key, None) for key in ("license", "license_name", "license_link")}
        name = card["license_name"] or card["license"]
        if not info.gated and not name:
            return None
        texts = sorted(each for each in listed if _LICENCE.fullmatch(each))
        text = self._small(str(info.id), str(info.sha), texts[0], field) if texts else None
        link = str(card["license_link"] or "")
        return known_terms.stated(
            f"{name or 'not stated'!s:.100}",
            f"{link:.500}" if link.startswith("https://") else f"{self._endpoint}/{info.id}",
            gated=bool(info.gated),
            text_sha256=hashlib.sha256(text).hexdigest() if text is not None else None,
        )

    def _asked(self, ask: Callable[[], Any], model_id: str, field: str) -> Any:
        def once() -> Any:
            try:
                return ask()
            except MedportError:
                raise
            except Exception as fault:
                raise self._typed(fault, model_id, field) from None

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda fault: isinstance(fault, MedportError) and fault.retryable),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(0.5, 8.0, jitter=0.5),
            sleep=self._sleep,
            reraise=True,
        )(once)

    def _typed(self, fault: Exception, model_id: str, field: str) -> Exception:
        errors, page = self._errors, f"{self._endpoint}/{model_id}"
        if isinstance(fault, errors.GatedRepoError):
            if self._token is None:
                return AuthError(
                    f"{model_id} is gated", field=field, remedy=f"accept its terms at {page}, then set HF_TOKEN"
                )
            return Forbidden(
                f"{model_id} is gated, and this token's account may not read it",
                field=field,
                remedy=f"accept its terms at {page} with that account",
            )
        if isinstance(fault, errors.RevisionNotFoundError):
            return NotFound(f"{model_id} has no such branch, tag or commit", field=field, remedy=f"see {page}")
        if isinstance(fault, errors.RepositoryNotFoundError):
            return NotFound(
                f"the hub has no {model_id}, or hides it", field=field, remedy="check the name, or set HF_TOKEN"
            )
        if isinstance(fault, errors.EntryNotFoundError):
            return ProtocolError(f"the hub lists a file of {model_id} that it does not have", field=field)
        if isinstance(fault, errors.HfHubHTTPError) and fault.response is not None:
            status = int(fault.response.status_code)
            return class_for(status)(f"the hub refuses (HTTP {status})", field=field, remedy="try again later")
        kind = type(fault)
        if any(each.__name__ in ("TransportError", "OfflineModeIsEnabled", "OSError") for each in kind.__mro__):
            return ConnectionFailed(
                f"the hub cannot be read ({kind.__name__})",
                field=field,
                remedy="let this machine reach it, or give --mirror DIR --offline",
            )
        return ProtocolError(f"the hub's answer cannot be read ({kind.__name__})", field=field)

    def _secret(self) -> str | None:
        return self._token.get_secret_value() if self._token is not None else None
