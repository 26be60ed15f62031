"""What a fetch that fails raises, and under which of MedSigLIP's codes."""

from __future__ import annotations

from typing import Literal

from medport.errors import InputError

FetchCode = Literal[
    "HTTP_ERROR",
    "INVALID_CREDENTIALS_ERROR",
    "DICOM_ERROR",
    "DICOM_PATH_ERROR",
    "UNAPPROVED_DICOM_STORE_ERROR",
    "UNHANDLED_GCS_FILE_ERROR",
    "UNHANDLED_HTTP_FILE_ERROR",
]
"""The codes of MedSigLIP's per-instance errors that a fetch can end in.

``HTTP_ERROR``: the other side could not be reached, was too slow, broke off or answered with an error.
``UNHANDLED_…_FILE_ERROR``: this server does not fetch that (not allowed, not a valid address, too large).
"""


class FetchError(InputError):
    """A file that a request points to cannot be had.

    The message names the host at most: never a path, a query, a bucket's object or a credential.
    """

    code: FetchCode
    """One of MedSigLIP's listed codes."""

    def __init__(
        self, message: str, *, code: FetchCode = "HTTP_ERROR", field: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, field=field, remedy=remedy)
        self.code = code
