"""What a person writes → the source that is meant."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from medport.errors import ConfigError
from medport_local.sources.bucket import BucketSource
from medport_local.sources.directory import DirectorySource
from medport_local.sources.hub import ENDPOINT, REPOSITORY, HubSource
from medport_local.sources.source import Source
from medport_local.sources.wanted import shown

BUNDLE = "bundle:"
_EXAMPLES = "write OWNER/NAME@COMMIT, gs://BUCKET/FOLDER, a directory, or bundle:FILE#SNAPSHOT"

OpenBundle = Callable[[Path, str | None], Source]
"""The source for a bundle's file and the reference of a snapshot in it; ``None`` for its only one."""


def source_for(
    text: str,
    *,
    endpoint: str = ENDPOINT,
    token: SecretStr | None = None,
    token_from: str = "--token-env NAME",  # noqa: S107  no token, but how to give one
    offline: bool = False,
    bundle: OpenBundle | None = None,
    field: str = "source",
) -> Source:
    """The source that a text names. Nothing is asked of it yet.

    Args:
        text: ``OWNER/NAME``, ``OWNER/NAME@REVISION``, ``gs://BUCKET/FOLDER``, a directory or
            ``bundle:FILE#REFERENCE``.
        endpoint, token, token_from, offline: for a hub; see ``HubSource``.
        bundle: opens bundles; without it they are refused.
        field: what to call the text in errors.

    Raises:
        ConfigError: it names none, or both a directory and a repository.
    """
    if text.startswith(BUNDLE):
        return _bundle(text.removeprefix(BUNDLE), bundle, field)
    if text.lower().startswith("gs://"):
        return BucketSource(text, field=field)
    repository, at, revision = text.partition("@")
    is_directory = os.path.isdir(text)
    if REPOSITORY.fullmatch(repository) is None or (at and is_directory):
        if not is_directory:
            raise ConfigError(_no_source(text), field=field, remedy=_EXAMPLES)
        return DirectorySource(Path(text), field=field)
    if is_directory:
        raise ConfigError(
            f"may be a directory here or a repository of the hub: {text}",
            field=field,
            remedy=f"write ./{text} for the directory, or {text}@COMMIT for the repository",
        )
    if at and not revision:
        raise ConfigError(f"nothing stands behind the @ of {text}", field=field, remedy=_EXAMPLES)
    return HubSource(
        repository,
        revision if at else None,
        endpoint=endpoint,
        token=token,
        token_from=token_from,
        offline=offline,
        field=field,
    )


def _no_source(text: str) -> str:
    scheme, is_url, _ = text.partition("://")
    if is_url:
        # What follows may hold a password.
        return f"addresses that begin with {shown((scheme,))}:// are not fetched"
    if not text:
        return "is empty"
    return f"{shown((text,))} is no source, and there is no such directory either"


def _bundle(text: str, opened: OpenBundle | None, field: str) -> Source:
    if opened is None:
        raise ConfigError("bundles are not read here", field=field, remedy="medport bundle install FILE")
    file, _, reference = text.partition("#")
    if not Path(file).is_file():
        raise ConfigError(f"there is no file {file}", field=field, remedy=_EXAMPLES)
    return opened(Path(file), reference or None)
