"""What a site with no network rests on, one part a check: store, snapshots, wheels, keys, log, providers, clock.

Each method looks at this machine alone, opens no socket, and says in one line what it found. For
``medport doctor --offline``, which puts them in order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport_local import key_files
from medport_local.bundle import collect, installation, installed, providers, wheels
from medport_local.bundle.install import default_site
from medport_local.bundle.manifest import LOCK
from medport_local.bundle.site import Site
from medport_local.bundle.trust import KEY, trusted
from medport_local.locked import check_locked
from medport_local.serving import chain
from medport_local.store import Store, Stored

MAX_AHEAD = timedelta(minutes=5)
"""How far a record may lie ahead of the clock: other machines' clocks wrote some of them."""


_INSTALL = "medport bundle install, with the bundle that belongs here"


class Absent(Exception):
    """There is nothing of the kind to check here; the text says what was looked for."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """Where the parts are; ``None`` for what the site does not have."""

    store: Path | None = None
    """The store's default place if ``None``."""
    lock: Path | None = None
    bundle: Path | None = None
    """What ``medport bundle install`` wrote; its default place if ``None`` and there is something."""
    audit: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ca_file: Path | None = None
    keys: Path | None = None
    """Of ``medport serve --keys``."""
    key: Path | None = None
    """The public key of who may sign bundles; what this machine trusts (``bundle.trust``) if nobody is named."""
    ca: tuple[Path, ...] = ()
    """Roots that certify who may sign bundles."""
    signer: str | None = None
    """Of those, only the one with this subject."""
    now: Callable[[], datetime] = _now

    def check_store(self) -> str:
        """The store is there, and of a format that this medport reads.

        Raises:
            ConfigError: it is not.
        """
        try:
            store = self._store()
        except ConfigError as error:
            raise ConfigError(
                error.message, field=error.field, remedy="medport bundle install, or give --store DIR"
            ) from error
        count = len(store.list())
        rights = "" if os.access(store.root, os.W_OK) else ", read-only"
        return f"{store.root}: {count} snapshot{'s' * (count != 1)}{rights}"

    def check_snapshots(self) -> str:
        """Every byte on the disk of each locked snapshot, or of all if there is no lock.

        Raises:
            NotFound: the lock names a snapshot that is not there, or there are none at all.
            VerificationError: something is not as it should be, or not what the lock names.
        """
        store = self._store()
        lock = self._lock()
        chosen = _locked(store, lock) if lock is not None else store.list()
        if not chosen:
            # A site without a model serves nothing, however sound the rest is.
            where = "the store is empty" if lock is None else "the lock names no model"
            raise NotFound(f"there is no snapshot here: {where}", remedy=_INSTALL)
        for each in chosen:
            if findings := store.verify(each):
                first, more = findings[0], f", and {len(findings) - 1} more" if len(findings) > 1 else ""
                raise VerificationError(f"{first.path}: {first.fault}{more}", remedy=first.remedy)
        size = sum(each.size_bytes for each in chosen)
        names = ", ".join(each.reference for each in chosen)
        return f"{names}: {size / 1e9:.2f} GB hashed{', as locked' if lock is not None else ''}"

    def check_bundle(self) -> str:
        """What was installed from the bundle is still what its signed manifest lists.

        Raises:
            ConfigError: who may sign bundles is named in a way that cannot be used.
            VerificationError: the manifest is not signed by whom this machine trusts or not the one that was
                installed, or a file is missing, another or not listed.
            Absent: no bundle is installed here.
        """
        place = self._bundle()
        verifier = trusted(key=self.key, authorities=self.ca, signer=self.signer, clock=self.now)
        if verifier is None and self.signer is not None:
            raise ConfigError("nobody certifies signers here", field="signer", remedy="give --ca as well")
        found = installation.check(place, verifier)
        manifest, signed_by = found.manifest, found.signed_by
        names = ", ".join(signed_by.names if signed_by else manifest.signed_by)
        signed = (
            f"signed by {names}"
            if signed_by
            else f"says that {names} signed it; signature NOT checked: name who may sign, --key PEM or {KEY}"
        )
        lock = f", lock {manifest.lock_id[:12]}" if manifest.lock_id else ""
        return f"{place}: {found.files} files as listed, made {manifest.created_at:%Y-%m-%d}{lock}, {signed}"

    def check_wheels(self) -> str:
        """The files that the wheels of the bundle list are installed here as they list them.

        What Python compiled from them (``__pycache__``) is not compared, only what cannot come of them is found;
        distributions of no wheel are counted and not looked into.

        Raises:
            VerificationError: a file is another, medport itself is from elsewhere, or something that can run
                belongs to no distribution.
            Absent: there is no installed bundle, or it has no wheels.
        """
        folder = self._part("wheels")
        found = installed.compare(wheels.read_directory(folder), collect.installed_here())
        for difference in found.differences:
            again = f"pip install --no-index --find-links {folder} --force-reinstall --no-deps"
            raise VerificationError(f"{difference.name}: {difference.fault}", remedy=f"{again} {difference.name}")
        if collect.ROOT not in found.same:
            raise VerificationError(
                "medport itself is not installed from the bundle",
                remedy=f"pip install --no-index --find-links {folder} medport",
            )
        if found.strays:
            raise VerificationError(
                f"{found.strays[0]} can run, and is of no distribution",
                remedy="take it out, and ask who put it there; or make the environment anew: python -m venv",
            )
        more = f", {len(found.absent)} more are not installed" if found.absent else ""
        others = f"; of no wheel of it: {len(found.others)}" if found.others else ""
        return f"the files of {len(found.same)} distributions are those of the bundle{more}{others}"

    def check_files(self) -> str:
        """Certificates, their keys and API keys can be read, belong together and are in force.

        Raises:
            ConfigError: one cannot be read, is not valid now, or can be read by others.
            Absent: none were named.
        """
        now, said = self.now(), []
        if self.tls_cert is not None:
            said.append(key_files.certificate(self.tls_cert, "tls-cert", now))
        if self.ca_file is not None:
            said.append(key_files.certificate(self.ca_file, "ca-file", now))
        if self.tls_key is not None:
            said.append(key_files.private_key(self.tls_key, self.tls_cert))
        if self.keys is not None:
            said.append(key_files.api_keys(self.keys, now))
        if not said:
            raise Absent("no certificate and no keys were named")
        return ", ".join(said)

    def check_audit(self) -> str:
        """The log may be written, and its chain is unbroken.

        Raises:
            VerificationError: it is broken; says where.
            ConfigError: it may not be written or read.
            Absent: no log was named, or nothing has been written yet.
        """
        if self.audit is None:
            raise Absent("no audit log was named")
        if not self.audit.is_dir():
            raise ConfigError(f"there is no directory {self.audit}", field="audit", remedy="start the server once")
        if not os.access(self.audit, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError("the directory may not be written", field="audit", remedy="run as the server's user")
        if not chain.files(self.audit) and chain.promised(self.audit) is None:
            raise Absent("the log has no lines yet")
        report = chain.verify(self.audit)
        if not report.unbroken:
            place = f"{report.file}, line {report.line}: " if report.file else ""
            raise VerificationError(
                f"{place}{report.fault}",
                remedy="keep the log as it is; medport audit verify --since looks at what is left of it",
            )
        return f"unbroken, {report.lines:,} lines"

    def check_providers(self) -> str:
        """Terraform, and the mirror that it reads providers from.

        Raises:
            VerificationError: the mirror is not what its listings state.
            Absent: there is no terraform or no mirror; only ``medport deploy`` needs them.
        """
        program = shutil.which("terraform")
        if program is None:
            raise Absent("terraform is not there: needed for medport deploy alone")
        try:
            found = providers.read_mirror(self._part("providers"))
        except Absent:
            raise Absent("there is no provider mirror: needed for medport deploy alone") from None
        sources = ", ".join(sorted({f"{each.source} {each.version}" for each in found.archives}))
        return f"{program}, {sources}"

    def check_clock(self) -> str:
        """The clock is not behind the newest thing that was written down.

        Raises:
            ConfigError: it is; says how far.
        """
        now, newest = self.now(), max(self._times(), default=None)
        if newest is None:
            return f"{now:%Y-%m-%d %H:%M} UTC; nothing here to compare it with"
        if newest > now + MAX_AHEAD:
            raise ConfigError(
                f"the clock says {now:%Y-%m-%d %H:%M} UTC, and the newest record is of {newest:%Y-%m-%d %H:%M}",
                remedy="set the clock: certificates and the audit log rest on it",
            )
        return f"{now:%Y-%m-%d %H:%M} UTC, the newest record is of {newest:%Y-%m-%d %H:%M}"

    def _store(self) -> Store:
        return Store(self.store, create=False)

    def _lock(self) -> Path | None:
        """The one that was named, else the bundle's."""
        with suppress(Absent):
            inside = self._bundle() / LOCK
            return self.lock or (inside if inside.is_file() else None)
        return self.lock

    def _bundle(self) -> Path:
        place = self.bundle or default_site(self.store)
        if not place.is_dir():
            if self.bundle is not None:
                raise ConfigError(f"there is no directory {place}", field="bundle", remedy=_INSTALL)
            raise Absent("no bundle is installed here")
        return place

    def _part(self, name: str) -> Path:
        folder = self._bundle() / name
        if not folder.is_dir():
            raise Absent(f"the bundle has no {name}")
        return folder

    def _times(self) -> Iterator[datetime]:
        """When the newest things were written down, by the clocks of those who did."""
        with suppress(ConfigError):  # the store has a check of its own
            yield from (each.added_at for each in self._store().list())
        with suppress(Absent, ConfigError):  # so has the bundle
            if (receipt := Site(self._bundle()).receipt()) is not None:
                yield from (receipt.created_at, receipt.installed_at)
        if self.audit is not None and self.audit.is_dir() and (lines := chain.files(self.audit)):
            with lines[-1].open("rb") as file:
                for line in file:
                    last = line
                yield from _time_of(last)


def _locked(store: Store, lock: Path) -> list[Stored]:
    found = []
    for model in locks.read(lock).models.values():
        try:
            stored = store.find(f"sha256:{model.snapshot_sha256}")
        except NotFound as absent:
            raise NotFound(
                f"the store does not have {model}, which the lock names",
                remedy=_INSTALL,
            ) from absent
        check_locked(
            model,
            snapshot_sha256=stored.snapshot_sha256,
            model_id=stored.model_id,
            revision=stored.revision,
            family=stored.family,
        )
        found.append(stored)
    return found


def _time_of(line: bytes) -> Iterator[datetime]:
    try:
        yield datetime.fromisoformat(orjson.loads(line)["time"])
    except (ValueError, KeyError, TypeError):
        return  # the log has a check of its own
