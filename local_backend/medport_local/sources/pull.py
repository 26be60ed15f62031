"""A source → a snapshot in the store: settings first, weights last, refused as early as can be."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from medport.errors import NotFound, VerificationError
from medport_local.safetensors_header import INDEX
from medport_local.snapshot import MANIFEST, FileEntry, Manifest, digest_of
from medport_local.snapshot_file import refuse
from medport_local.sources.judging import Judged, check_size, is_judged, judge
from medport_local.sources.reading import Reading
from medport_local.sources.source import Changed, Offer, Offered, Pinned, Source, Tell
from medport_local.sources.wanted import WEIGHTS, shown
from medport_local.store import Intake, Record, Store, Stored

logger = logging.getLogger(__name__)

_FIRST = ("config.json", INDEX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a pull is."""

    name: str
    """The file that is under way."""
    total_bytes: int
    """Of all files whose size is known."""
    there_bytes: int
    """Of them were in the store, or kept from an earlier try."""
    fetched_bytes: int
    """Came from the source in this pull."""


Watch = Callable[[Progress], None]
"""Told after each piece; a piece is some 64 KiB, and it is called in the thread that fetches."""


def pull(store: Store, source: Source, *, told: Tell, watch: Watch = lambda _: None) -> Stored:
    """Bring a source's model into the store.

    What has arrived before a fault, Ctrl-C or a kill is kept, and gone on with when the same is pulled again. A
    pinned commit that the store has is not asked for.

    Args:
        told: takes lines for people.
        watch: is told the progress.

    Raises:
        VerificationError: a file is not what its source lists, or the whole is no snapshot that would be loaded.
        ConfigError: the store's disk is full, or the source's settings are wrong.
        MedportError: the source cannot be read; see there.
    """
    if isinstance(source, Pinned) and (there := _sound(store, source.reference, told)):
        return there
    offer = source.offer()
    for line in offer.said:
        told(line)
    if there := _sound(store, _reference(offer), told):
        return there
    with store.intake(offer.identity) as intake:
        manifest, notes = _Pull(intake, source, offer, told, watch).run()
        record = Record(
            source=offer.source,
            requested=offer.requested,
            revision=offer.revision,
            added_at=datetime.now(UTC),
            by=_user(),
            terms=offer.terms,
            notes=notes,
        )
        stored = intake.commit(manifest, record)
        # What came was hashed. But where the store had the snapshot before, a file too many may lie beside it.
        store.open(stored, defer_weights=True)
        return store.find(f"sha256:{stored.snapshot_sha256}")


class _Pull:
    """One pull under way."""

    def __init__(self, intake: Intake, source: Source, offer: Offer, told: Tell, watch: Watch) -> None:
        self._intake = intake
        self._source = source
        self._offer = offer
        self._told = told
        self._watch = watch
        self._listed: Mapping[str, FileEntry] = offer.manifest.files if offer.manifest else {}
        self._there_bytes = self._fetched_bytes = self._total_bytes = 0

    def run(self) -> tuple[Manifest, tuple[str, ...]]:
        """Fetch everything; what the snapshot is, and what is to be remembered about how it came."""
        self._check_listing()
        names = sorted(self._offer.files, key=lambda name: (name.endswith(WEIGHTS), name not in _FIRST, name))
        texts = [name for name in names if not name.endswith(WEIGHTS)]
        self._count(names)
        for name in texts:
            check_size(name, self._expected(self._offer.files[name])[0])
        entries = {name: self._fetch(name) for name in texts}
        judged = judge(self._offer, {name: self._text(name, entries[name]) for name in texts if is_judged(name)})
        left = tuple(name for name in judged.spare if name not in self._listed)
        notes = (f"weights that the index does not name are left: {shown(left)}",) if left else ()
        for note in notes:
            self._told(note)
        weights = [name for name in names if name.endswith(WEIGHTS) and name not in left]
        self._count([*texts, *weights])
        entries |= {name: self._fetch(name, judged) for name in weights}
        return self._manifest(entries, judged), notes

    def _check_listing(self) -> None:
        if self._offer.manifest is None:
            return
        for name in self._listed:
            if name not in self._offer.files:
                refuse(name, "is in the manifest but not there")
        for name in self._offer.files:
            if name not in self._listed:
                refuse(name, "is not in the manifest", "remove it, or make the manifest again")

    def _count(self, names: list[str]) -> None:
        self._total_bytes = sum(self._expected(self._offer.files[name])[0] or 0 for name in names)

    def _expected(self, offered: Offered) -> tuple[int | None, str | None]:
        """The size and sha256 of a file, by what its source says and by its manifest."""
        listed = self._listed.get(offered.name)
        if listed is None:
            return offered.size_bytes, offered.sha256
        if offered.size_bytes not in (None, listed.size_bytes) or offered.sha256 not in (None, listed.sha256):
            refuse(offered.name, f"is not what {MANIFEST} lists", "fetch or make the model again")
        return listed.size_bytes, listed.sha256

    def _fetch(self, name: str, judged: Judged | None = None) -> FileEntry:
        offered = self._offer.files[name]
        size_bytes, sha256 = self._expected(offered)
        version, begun_again = offered.version, False
        while True:
            int8 = judged.int8 if judged else None
            reading = Reading(self._source, offered, size_bytes, int8=int8, moved=self._moved)
            try:
                entry = self._intake.receive(name, reading, size_bytes=size_bytes, sha256=sha256, version=version)
            except Changed:
                fault, worth_trying = "changed while it was read", True
            else:
                differing = reading.differing(self._intake, entry)
                if differing is None:
                    self._there_bytes += max(0, entry.size_bytes - reading.fetched_bytes)
                    return entry
                fault = f"does not have the {differing} that its source lists"
                # What was kept from before may be at fault.
                worth_trying = not reading.is_from_start
            if begun_again or not worth_trying:
                refuse(name, fault, "try again; if it stays so, ask whoever keeps the source")
            self._told(f"{name} {fault}; beginning again")
            # Another version: nothing of what has arrived is gone on with.
            version, begun_again = f"{version} again", True

    def _moved(self, name: str, offset: int, count: int) -> None:
        self._fetched_bytes += count
        self._watch(
            Progress(
                name=name,
                total_bytes=self._total_bytes,
                there_bytes=self._there_bytes + offset,
                fetched_bytes=self._fetched_bytes,
            )
        )

    def _text(self, name: str, entry: FileEntry) -> bytes:
        check_size(name, entry.size_bytes)  # a source may not have known it before
        with self._intake.open(entry) as file:
            return file.readall()

    def _manifest(self, entries: Mapping[str, FileEntry], judged: Judged) -> Manifest:
        given = self._offer.manifest
        return Manifest(
            repo_id=judged.model_id,
            revision=self._offer.revision,
            family=judged.family,
            files=dict(entries),
            snapshot_sha256=given.snapshot_sha256 if given else digest_of(entries),
            notice=given.notice if given else None,
            parent=given.parent if given else None,
        )


def _reference(offer: Offer) -> str | None:
    if offer.manifest is not None:
        return f"sha256:{offer.manifest.snapshot_sha256}"
    return f"{offer.model_id}@{offer.revision}" if offer.model_id and offer.revision else None


def _sound(store: Store, reference: str | None, told: Tell) -> Stored | None:
    """What the store has under a reference, if nothing of it is missing or altered."""
    if reference is None:
        return None
    try:
        there = store.find(reference)
        store.open(there)
    except NotFound:
        return None
    except VerificationError as fault:
        told(f"what the store has of it is damaged, and is fetched again: {fault.message}")
        return None
    told(f"{there.reference} is in the store already: sha256:{there.snapshot_sha256}")
    return there


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
