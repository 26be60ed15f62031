"""``medport snapshot lock``: write down exactly which snapshots of the store are approved. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medport import lock as locks
from medport.errors import ConfigError
from medport.lock import Lock, LockedFile, LockedImage, LockedModel, Terms
from medport_local.cli_options import named_values
from medport_local.cli_snapshot import AsJson, StoreDir, app, open_store, print_json

if TYPE_CHECKING:
    from medport_local.snapshot import Snapshot
    from medport_local.store import Store, Stored

_NAMED = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9._-]{0,62})=)?(.+)")
_IMAGE = re.compile(r"([^@\s]{1,1024})@(sha256:[0-9a-f]{64})")
_DIGITS = 12


@app.command(
    epilog="Example: medport snapshot lock google/medgemma-4b-it@290dda1 google/medsiglip-448 -o medport.lock"
)
def lock(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]REF…", help="Snapshots of the store; each is named after its family if not."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write it.")] = Path(
        locks.FILE_NAME
    ),
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URI@sha256:…", help="A container image that is approved too. Repeatable."),
    ] = None,
    allow_unpinned: Annotated[
        bool,
        typer.Option(
            "--allow-unpinned",
            help="Take snapshots without a commit too, as from a directory; their bytes are pinned all the same.",
        ),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of a lock that says something else.")
    ] = False,
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Verify snapshots of the store byte for byte and lock them.

    medport serve --lock FILE serves these and no others, and every result names the lock's id.

    Of a lock that is there already, what is not said anew (images, keys of other tools) is kept.
    """
    where = open_store(store)
    models = _models(where, references, allow_unpinned=allow_unpinned)
    images = _images(image or ())
    before = locks.read(out) if out.exists() else None
    made = _merged(before, models, images)
    changed = before is not None and before.lock_id != made.lock_id
    if changed and not replace:
        assert before is not None
        for line in _changes(before, made):
            typer.echo(line, err=True)
        raise ConfigError(
            f"{out.name} is there and says something else (lock id {before.lock_id[:_DIGITS]})",
            field="out",
            remedy="look at the lines above, then give --replace, or another -o FILE",
        )
    if before is None or changed:
        locks.write(out, made)
    if as_json:
        shown = {
            name: {"reference": str(each), "snapshot_sha256": each.snapshot_sha256}
            for name, each in models.items()
        }
        print_json(
            {"lock": str(out), "lock_id": made.lock_id, "models": shown, "written": before is None or changed}
        )
        return
    for name, each in models.items():
        typer.echo(f"{name}: {each}, sha256 {each.snapshot_sha256[:_DIGITS]}, {len(each.files)} files")
    typer.echo(f"Lock {made.lock_id} in {out}. Serve it: medport serve --lock {out}")


def _models(store: Store, references: Sequence[str], *, allow_unpinned: bool) -> dict[str, LockedModel]:
    chosen: dict[str, Stored] = {}
    for text in references:
        named = _NAMED.fullmatch(text)
        assert named is not None  # "" is refused by the parser of the command line
        stored = store.find(named[2])
        name = named[1] or stored.family
        if name in chosen:
            raise ConfigError(
                f"two snapshots would be called {name}", field="references", remedy="give NAME=REF for each"
            )
        if stored.revision is None and not allow_unpinned:
            raise ConfigError(
                f"{stored.model_id} has no commit: it came from {stored.record.source} {stored.record.requested}",
                field="references",
                remedy="pull it from the hub by its commit, or give --allow-unpinned to lock its bytes alone",
            )
        chosen[name] = stored
    # Hashing takes long, so all else is asked first.
    found = {}
    for name, stored in chosen.items():
        with store.hold(stored):
            found[name] = locked_model(store.open(stored), stored)
    return found


def locked_model(snapshot: Snapshot, stored: Stored) -> LockedModel:
    """What a lock says of a snapshot that was verified."""
    terms = stored.record.terms
    return LockedModel(
        model_id=snapshot.model_id,
        revision=snapshot.revision,
        snapshot_sha256=snapshot.snapshot_sha256,
        family=snapshot.family,
        files={
            name: LockedFile(sha256=entry.sha256, size_bytes=entry.size_bytes)
            for name, entry in snapshot.files.items()
        },
        terms=Terms(**terms.model_dump()) if terms else None,
    )


def _images(options: Sequence[str]) -> dict[str, LockedImage]:
    found = {}
    for name, text in named_values(
        options, "image", form="NAME=URI@sha256:…", example="serving=URI@sha256:…"
    ).items():
        if not (parts := _IMAGE.fullmatch(text)):
            raise ConfigError(
                "is not URI@sha256:… with 64 hex digits", field="image", remedy="a tag moves: give the digest"
            )
        found[name] = LockedImage(uri=parts[1], digest=parts[2])
    return found


def _merged(before: Lock | None, models: Mapping[str, LockedModel], images: Mapping[str, LockedImage]) -> Lock:
    # Through the file's form, so that a name that no lock may hold is refused as it would be when it is read.
    content = {} if before is None else before.model_dump(mode="json", exclude_unset=True)
    content["version"] = 1
    content["models"] = {name: each.model_dump(mode="json", exclude_unset=True) for name, each in models.items()}
    if images:
        content["images"] = {
            **content.get("images", {}),
            **{name: each.model_dump(mode="json", exclude_unset=True) for name, each in images.items()},
        }
    return locks.checked(content)


def _changes(before: Lock, made: Lock) -> list[str]:
    lines = []
    for name in sorted({*before.models, *made.models}):
        old, new = before.models.get(name), made.models.get(name)
        if old != new:
            lines.append(f"{name}: {old or 'nothing'} -> {new or 'nothing'}")
    for name in sorted({*before.images, *made.images}):
        was, is_ = before.images.get(name), made.images.get(name)
        if was != is_:
            lines.append(f"image {name}: {was.digest if was else 'nothing'} -> {is_.digest if is_ else 'nothing'}")
    return lines
