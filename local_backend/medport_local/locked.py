"""Whether a snapshot is the one that a lock names: one comparison for all who write, check, install or serve."""

from __future__ import annotations

from medport.errors import VerificationError
from medport.lock import LockedModel

_NONE = "unpinned"


def check_locked(
    model: LockedModel, *, snapshot_sha256: str, model_id: str, revision: str | None, family: str
) -> None:
    """Compare what a snapshot says of itself with what is locked.

    The bytes alone do not decide: the same bytes under another commit are another thing to have approved.

    Args:
        model: what the lock names.
        snapshot_sha256: of the snapshot, 64 hex digits.
        model_id: of the snapshot, as its manifest has it.
        revision: its commit; ``None`` where it has none.
        family: ``medgemma`` or ``medsiglip``.

    Raises:
        VerificationError: one of them is another.
    """
    for what, found, must in (
        ("snapshot", snapshot_sha256, model.snapshot_sha256),
        ("model", model_id, model.model_id),
        ("revision", revision or _NONE, model.revision or _NONE),
        ("family", family, model.family),
    ):
        if found != must:
            raise VerificationError(
                f"the {what} is {found}, and {must} is locked",
                field="lock",
                remedy="take the snapshot that is locked, or lock this one: medport snapshot lock",
            )
