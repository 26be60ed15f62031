"""Where an image of a request comes from, and what the model gets of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from medport.errors import ImageError, ServerError
from medport.images import Image, is_data_url, load, prepare
from medport_local.engine.protocol import Engine
from medport_local.serving.endpoints import IMAGE_LIMITS, SERVER_SIDE_PX, Served
from medport_local.serving.outcome import Asking

if TYPE_CHECKING:
    from medport_local.engine.codecs import ImageCodec, PixelValues

_REMOTE = ("http://", "https://")


async def read_url(
    served: Served, url: str, *, field: str, credential: str | None = None, deadline: float | None = None
) -> bytes | str:
    """The bytes behind a URL; a ``data:`` URL as it is, for ``load`` is the one that decodes it.

    Args:
        credential: a bearer token for the other server, or ``application_default``.
        deadline: in ``time.monotonic()``, until when.

    Raises:
        FetchError: the server may not fetch this, or could not.
        ImageError: it is neither a URL nor ``data:``.
    """
    if is_data_url(url):
        return url
    bare = url.strip()
    fetch: Callable[..., bytes] | None = None
    if bare[:8].lower().startswith(_REMOTE):
        fetch = served.fetcher.http
    elif bare[:5].lower() == "gs://":
        fetch = served.fetcher.gcs
    if fetch is None:
        raise ImageError("is not a data: URL", field=field, remedy="send the image itself as a data: URL")
    return await served.threads.fetching(fetch, bare, credential=credential, field=field, deadline=deadline)


async def image_values(asking: Asking, served: Served, codec: ImageCodec, url: str, *, field: str) -> PixelValues:
    """The model's input for the image behind a URL. Raises as ``read_url`` and ``load`` do."""
    source = await read_url(served, url, field=field, deadline=asking.deadline)
    return await served.threads.decoding(lambda: pixel_values(codec, decoded(source, field=field)))


def decoded(source: bytes | str, *, field: str) -> Image:
    """An image of what ``read_url`` gave. CPU work: call it in a decoding thread."""
    return load(source, field=field, limits=IMAGE_LIMITS)


def pixel_values(codec: ImageCodec, image: Image) -> PixelValues:
    """The model's input for an image, by the one preparation policy. CPU work."""
    return codec.pixel_values(prepare(image, max_side_px=SERVER_SIDE_PX).to_array())


def codec_of(engine: Engine) -> ImageCodec:
    """The engine's image codec; whether it takes images the prompt builder has checked."""
    if engine.images is None:
        raise ServerError("this engine takes no images")
    return engine.images
