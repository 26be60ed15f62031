"""Several streams at once, each printed when it is done: python examples/stream_async.py FILE …"""

import asyncio
import sys

import medport


async def read(client: medport.AsyncClient, path: str) -> None:
    async with client.chat_stream(
        "What does this x-ray show?", images=path, system="You are a radiologist."
    ) as stream:
        async for delta in stream:
            print(".", end="", flush=True, file=sys.stderr) if delta.text else None
    print(stream.result)


async def main(paths: list[str]) -> None:
    async with medport.AsyncClient() as client:
        await asyncio.gather(*(read(client, path) for path in paths))


asyncio.run(main(sys.argv[1:]))
