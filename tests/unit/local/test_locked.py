"""A snapshot is the locked one only if all that names it is the same."""

from __future__ import annotations

import pytest
from support.bundles import lock_of

from medport.errors import VerificationError
from medport_local.locked import check_locked
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot

SNAPSHOT = open_snapshot(weights_dir("medsiglip"))
(MODEL,) = lock_of(weights_dir("medsiglip")).models.values()


def said(**changed: str | None) -> dict[str, str | None]:
    """What the snapshot says of itself."""
    plain = {
        "snapshot_sha256": SNAPSHOT.snapshot_sha256,
        "model_id": SNAPSHOT.model_id,
        "revision": SNAPSHOT.revision,
        "family": SNAPSHOT.family,
    }
    return plain | changed


def test_snapshot_that_was_locked_is_let_through() -> None:
    check_locked(MODEL, **said())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "value", "shown"),
    [
        ("snapshot_sha256", "0" * 64, "snapshot is 0000"),
        ("model_id", "google/other", "model is google/other"),
        ("revision", "c" * 40, "revision is cccc"),
        ("revision", None, "revision is unpinned"),
        ("family", "medgemma", "family is medgemma"),
    ],
)
def test_snapshot_of_another_name_is_refused(what: str, value: str | None, shown: str) -> None:
    with pytest.raises(VerificationError, match=shown):
        check_locked(MODEL, **said(**{what: value}))  # type: ignore[arg-type]


def test_snapshot_with_a_commit_is_not_the_one_that_was_locked_without() -> None:
    unpinned = MODEL.model_copy(update={"revision": None})

    with pytest.raises(VerificationError, match="and unpinned is locked"):
        check_locked(unpinned, **said())  # type: ignore[arg-type]
