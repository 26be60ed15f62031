"""What ``medport bundle`` prints about a bundle, what installing it would do, and what was done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medport_local.cli_snapshot import as_dict, printable, shown_size

if TYPE_CHECKING:
    from medport_local.bundle.archive import Bundle
    from medport_local.bundle.install import Installed, Plan
    from medport_local.bundle.inventory import Inventory

_DIGITS = 12
_EXTRAS = {"local": "torch", "dicom": "pydicom", "bundle": "model_signing"}


def bundle_dict(bundle: Bundle) -> dict[str, Any]:
    """A bundle and its members, for ``--json``."""
    manifest, signed = bundle.manifest, bundle.signed_by
    return {
        "manifest_sha256": bundle.manifest_sha256,
        "created_at": manifest.created_at.isoformat(),
        "medport": manifest.medport,
        "lock_id": manifest.lock_id,
        "signed": bundle.signature_bytes is not None,
        "signed_by": list(signed.names) if signed else None,
        "key_sha256": signed.key_sha256 if signed else None,
        "valid_until": signed.valid_until.isoformat() if signed and signed.valid_until else None,
        "size_bytes": bundle.size_bytes,
        "entries": [entry.model_dump() for entry in manifest.entries],
    }


def contents_dict(inventory: Inventory) -> dict[str, Any]:
    """Its snapshots, for ``--json``."""
    return {
        "snapshots": [
            {"reference": each.reference, "snapshot_sha256": each.manifest.snapshot_sha256}
            for each in inventory.snapshots
        ]
    }


def plan_dict(plan: Plan) -> dict[str, Any]:
    """What installing would do, for ``--json``."""
    return {
        "to": str(plan.site.directory),
        "store": str(plan.store_root),
        "copied_bytes": plan.copied_bytes,
        "notes": list(plan.notes),
    }


def installed_dict(done: Installed) -> dict[str, Any]:
    """What installing did, for ``--json``."""
    return {
        "installed": True,
        "snapshots": [as_dict(each) for each in done.snapshots],
        "pin": done.pin,
        "previous": str(done.previous) if done.previous else None,
    }


def print_bundle(bundle: Bundle, inventory: Inventory | None = None) -> None:
    """Who signed it and when, and what it holds by kind."""
    manifest, signed = bundle.manifest, bundle.signed_by
    if signed is not None:
        until = f", valid until {signed.valid_until:%Y-%m-%d}" if signed.valid_until else ""
        said = f"{', '.join(signed.names)}{until}"
    elif manifest.signed_by:
        said = f"{', '.join(manifest.signed_by)}, as it says itself"
    else:
        said = "NOBODY: it cannot be installed"
    typer.echo(f"signed by  {printable(said)}")
    typer.echo(f"created    {manifest.created_at:%Y-%m-%d %H:%M}Z by medport {printable(manifest.medport)}")
    typer.echo(f"lock       {manifest.lock_id or 'none'}")
    counts: dict[str, list[int]] = {}
    for entry in manifest.entries:
        counts.setdefault(entry.kind, []).append(entry.size_bytes)
    for kind, sizes in counts.items():
        typer.echo(f"{kind:<10} {len(sizes):>6}  {shown_size(sum(sizes)):>12}")
    for each in inventory.snapshots if inventory else ():
        size = sum(file.size_bytes for file in each.manifest.files.values())
        digest = each.manifest.snapshot_sha256[:_DIGITS]
        typer.echo(f"  {printable(each.reference)}  sha256:{digest}  {shown_size(size)}")


def print_plan(plan: Plan) -> None:
    """Where it goes, how much is copied, and what to know before."""
    typer.echo(f"\ninto       {plan.site.directory} and the store {plan.store_root}")
    there = sum(entry.size_bytes for entry in plan.inventory.blobs.values()) - sum(
        entry.size_bytes for entry in plan.absent
    )
    typer.echo(f"copies     {shown_size(plan.copied_bytes)}; {shown_size(there)} are in the store already")
    for note in plan.notes:
        typer.echo(f"Note: {printable(note)}.")


def print_installed(done: Installed, store: Path | None) -> None:
    """Where it went, and what to type next."""
    typer.echo(f"\nInstalled into {done.directory}.")
    if done.pin:
        typer.echo(f"Its snapshots are pinned: {done.pin}.")
    if done.previous:
        typer.echo(f"What was there before is in {done.previous}.")
    typer.echo("Next:")
    for command in next_commands(done, store):
        typer.echo(f"  {command}")


def next_commands(done: Installed, store: Path | None) -> list[str]:
    """What to type: only what the bundle has parts for."""
    named = f" --store {store}" if store else ""
    found = []
    if done.wheels:
        found.append(f"pip install --no-index --find-links {done.wheels} '{_requirement(done.wheels)}'")
    if done.lock:
        found.append(f"medport serve --lock {done.lock}{named}")
    return [*found, f"medport doctor --offline --bundle {done.directory}{named}"]


def _requirement(wheels: Path) -> str:
    """medport with the extras whose chief package is among the wheels."""
    there = {path.name.partition("-")[0].lower() for path in wheels.iterdir()}
    extras = [extra for extra, package in _EXTRAS.items() if package in there]
    return f"medport[{','.join(extras)}]" if extras else "medport"
