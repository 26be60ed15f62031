"""Handlers that do what handlers may do wrong, for a door to stand in front of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import orjson
from starlette.responses import PlainTextResponse, Response

from medport.errors import InputError, MedportError, row_of
from medport_local.serving.exchange import JSON, Events, Exchange
from medport_local.serving.protocol import Protocol

from .doors import Table

RAN: list[str] = []
"""Ids of the requests that reached ``echo``."""


async def echo(exchange: Exchange) -> Response:
    exchange.permit("medgemma")
    body = await exchange.json()
    RAN.append(exchange.request_id)
    exchange.facts.deployed_model = "1"
    exchange.facts.endpoint = "medgemma"
    return JSON(body)


async def small(exchange: Exchange) -> Response:
    exchange.permit_any()
    return JSON(await exchange.json(limit=100))


async def forgetful(exchange: Exchange) -> Response:
    return JSON({"secret": "CANARY"})


async def named(exchange: Exchange) -> Response:
    return JSON({"endpoint": exchange.path["endpoint"]})


async def listed(exchange: Exchange) -> Response:
    return JSON([name for name in ("medgemma", "medsiglip") if exchange.may(name)])


async def dialect(exchange: Exchange) -> Response:
    exchange.permit_any()

    def render(error: MedportError) -> Response:
        return PlainTextResponse(f"own form: {error.message}", status_code=row_of(error).http)

    exchange.render_error = render
    if (await exchange.json()).get("broken"):

        def fails(error: MedportError) -> Response:
            raise RuntimeError("CANARY")

        exchange.render_error = fails
    raise InputError("no")


async def patient(exchange: Exchange) -> Response:
    exchange.permit_any()
    exchange.bound(0.2)
    exchange.bound(100)
    await exchange.within(asyncio.sleep(10))
    return JSON({})


async def inner_timeout(exchange: Exchange) -> Response:
    exchange.permit_any()

    async def fails() -> None:
        raise TimeoutError("CANARY of another library")

    await exchange.within(fails())
    return JSON({})


CLOSED: list[bool] = []
"""One for each stream that was closed."""


async def stream(exchange: Exchange) -> Events:
    exchange.permit("medgemma")
    body = await exchange.json()
    exchange.facts.deployed_model = "1"

    async def values() -> AsyncGenerator[object, None]:
        for i in range(int(str(body.get("count", 3)))):
            exchange.first_token()
            yield {"i": i}
            await asyncio.sleep(0.005)
        if body.get("fail"):
            raise InputError("in mid stream")

    if body.get("raw"):
        return Events(
            values(),
            close=lambda: CLOSED.append(True),
            media_type="application/json",
            encode=lambda value: orjson.dumps(value) + b"\0",
            last=None,
        )
    return Events(values(), close=lambda: CLOSED.append(True))


async def forgetful_stream(exchange: Exchange) -> Events:
    async def values() -> AsyncGenerator[object, None]:
        yield "CANARY"

    return Events(values(), close=lambda: CLOSED.append(True))


async def health(exchange: Exchange) -> Response:
    return PlainTextResponse("ok" if exchange.lifecycle.ready else "not ok")


class Hasty(Protocol):
    head_s = 0.3


def url(address: tuple[str, int]) -> str:
    """Of a server."""
    return f"http://{address[0]}:{address[1]}"


TABLE: Table = {
    "POST /echo": (echo, "infer"), "POST /small": (small, "infer"), "GET /forgetful": (forgetful, "read"),
    "GET /forgetful-admin": (forgetful, "admin"), "GET /endpoints/{endpoint}": (named, "read"),
    "GET /list": (listed, "read"), "POST /dialect": (dialect, "infer"), "GET /patient": (patient, "infer"),
    "GET /inner": (inner_timeout, "infer"), "POST /stream": (stream, "infer"),
    "GET /forgetful-stream": (forgetful_stream, "infer"), "GET /health": (health, None),
}  # fmt: skip
