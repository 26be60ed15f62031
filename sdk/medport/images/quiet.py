"""Keep what image libraries say about a file out of logs and warnings: their messages quote values from it.

pydicom warns with the offending value ("Invalid value for VR DA: …"), Pillow logs TIFF tags at DEBUG. Both
are silenced only for the thread that is decoding, and only while it is.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LIBRARIES = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "rle", "PIL", "gdcm", "jpeg_ls")
_MODULES = rf"({'|'.join(_LIBRARIES)})(\.|$)"

_here = threading.local()
_lock = threading.Lock()
_readers = 0


class _WhileDecoding(logging.Filter):
    """Drops the records of the thread that decodes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_here, "decoding", False)


_filter = _WhileDecoding()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the image libraries in this thread.

    ``warnings.catch_warnings`` swaps process-wide state and, entered by two threads at once, restores the
    wrong one. So one filter, narrow to these libraries, is counted in and out. What is left on Python 3.11:
    while any thread decodes, other threads do not hear these libraries' warnings; and a thread that
    replaces the filters in that moment decides for all.
    """
    global _readers
    _mute_loggers()
    outer = getattr(_here, "decoding", False)
    with _lock:
        _readers += 1
        if _readers == 1:
            warnings.filterwarnings("ignore", module=_MODULES)
    _here.decoding = True
    try:
        yield
    finally:
        _here.decoding = outer
        with _lock:
            _readers -= 1
            if _readers == 0:
                _remove_filter()


def _remove_filter() -> None:
    for entry in list(warnings.filters):
        if entry[0] == "ignore" and getattr(entry[3], "pattern", entry[3]) == _MODULES:
            with suppress(ValueError):  # another thread has put other filters in place: nothing to take back
                warnings.filters.remove(entry)  # type: ignore[attr-defined]


def _mute_loggers() -> None:
    # A filter acts only on records made through its own logger, so children need it as well. Those that
    # appear during the first decode are made by imports, which happen before: see the callers.
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in _LIBRARIES and isinstance(logger, logging.Logger):
            logger.addFilter(_filter)
