"""Keep what the network libraries say about a fetch out of the logs: it is full of addresses, headers and UIDs.

httpx logs whole URLs at INFO, httpcore answers' headers at DEBUG, dicomweb-client UIDs at INFO and headers at
DEBUG, google-api-core the errors it retries. They are silenced only in the thread that fetches, and only while
it does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = frozenset({"httpx", "httpcore", "requests", "urllib3", "dicomweb_client", "google", "retrying"})
_here = threading.local()


class _WhileFetching(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(_here, "fetching", False)


_filter = _WhileFetching()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the network libraries in this thread; import them before."""
    # A filter acts only on records made through its own logger, so each child needs it.
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] in _LIBRARIES and isinstance(logger, logging.Logger):
            logger.addFilter(_filter)
    outer = getattr(_here, "fetching", False)
    _here.fetching = True
    try:
        yield
    finally:
        _here.fetching = outer
