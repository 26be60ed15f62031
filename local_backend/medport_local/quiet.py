"""Keep what the network libraries say about a request out of the logs: it is full of addresses, headers and UIDs.

httpx logs whole URLs at INFO, which may hold a signature, httpcore answers' headers at DEBUG, dicomweb-client UIDs
at INFO and headers at DEBUG, google-api-core the errors it retries. They are silenced only in the thread that
asks, and only while it does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = frozenset((
    "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "requests", "urllib3", "google",
    "dicomweb_client", "retrying",
))  # fmt: skip
_here = threading.local()


class _WhileAsking(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_here, "asking", False)


_filter = _WhileAsking()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the network libraries in this thread; import them before."""
    # A filter acts only on records made through its own logger, so each child needs it.
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in _LIBRARIES and isinstance(logger, logging.Logger):
            logger.addFilter(_filter)
    outer = getattr(_here, "asking", False)
    _here.asking = True
    try:
        yield
    finally:
        _here.asking = outer
