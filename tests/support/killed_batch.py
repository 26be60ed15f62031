"""A program whose batch job is killed at each step in turn: ``python killed_batch.py SNAPSHOT ROOT``.

For each step a child submits a job, unless there is one already, and is killed with SIGKILL right before or
after a file gets its name or a transaction is on the disk; another child goes on with what it left. Prints a line
of JSON for each: ``step``, ``killed``, ``whole`` (rows of the files that were whole then) and ``asked`` (rows that
the second child asked). Step 0 kills nobody. All of a step is below ``ROOT/{step}``. Forked: torch loads slowly.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from medport_local.control.batch_store import KeptJobs
from medport_local.control.database import Database
from medport_local.engine.embedder import Embedder, EmbedderLimits
from medport_local.engine.loading import load_siglip
from medport_local.serving import batch_files, batch_rows
from medport_local.serving.batch import Batches
from medport_local.serving.batch_files import BatchFiles
from medport_local.serving.batch_targets import StandingTargets
from medport_local.serving.endpoints import Served, Threads
from medport_local.serving.fetch import Fetcher
from medport_local.snapshot import open_snapshot

PARENT = "projects/1/locations/europe-west4"
REQUEST = {
    "displayName": "killed",
    "model": f"{PARENT}/models/medsiglip@1",
    "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["rows.jsonl"]}},
    "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "out"}},
}
ROWS = [{"text": f"row {i} " + "x" * i} if i not in (4, 11) else {"words": i} for i in range(14)]
SHARD_ROWS = 3


def main(snapshot: Path, root: Path) -> None:
    torch.set_num_threads(1)
    batch_files.SHARD_ROWS = SHARD_ROWS
    step = 0
    while True:
        folder = root / str(step)
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        killed = in_child(lambda folder=folder, step=step: work(snapshot, folder, step or 1_000_000))
        whole = [row for i in whole_files(folder) for row in range(i * SHARD_ROWS + 1, (i + 1) * SHARD_ROWS + 1)]
        (folder / "asked").unlink(missing_ok=True)
        if killed:
            assert not in_child(lambda folder=folder: work(snapshot, folder, 1_000_000))
        asked = folder / "asked"
        numbers = sorted({int(line) for line in asked.read_text().split()}) if asked.exists() else []
        print(json.dumps({"step": step, "killed": killed, "whole": whole, "asked": numbers}), flush=True)
        if step and not killed:
            return
        step += 1


def whole_files(folder: Path) -> list[int]:
    return [int(path.name[19:24]) for path in (folder / "files").rglob("prediction.results-*")]


def in_child(task: Callable[[], None]) -> bool:
    """Whether the child was killed."""
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException as fault:
            print(type(fault).__name__, fault, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def work(snapshot: Path, folder: Path, step: int) -> None:
    """Do the job, killed at the given step."""
    left = step

    def killing(inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*arguments: Any) -> Any:
            nonlocal left
            for act in (lambda: None, lambda: inner(*arguments)):
                done = act()
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return done

        return outer

    os.replace = killing(os.replace)
    Database._commit = killing(Database._commit)  # type: ignore[method-assign]
    answer = batch_rows.answer

    async def noted(served: Served, number: int, *rest: Any, **named: Any) -> Any:
        with (folder / "asked").open("a") as file:
            file.write(f"{number}\n")
        return await answer(served, number, *rest, **named)

    batch_rows.answer = noted
    asyncio.run(job(snapshot, folder))


async def job(snapshot: Path, folder: Path) -> None:
    threads = Threads(decode=ThreadPoolExecutor(1), fetch=ThreadPoolExecutor(1))
    # One at a time: what is embedded together changes the last bits, and when who is together is chance.
    engine = Embedder(load_siglip(open_snapshot(snapshot)), limits=EmbedderLimits(max_batch=1))
    served = Served(
        endpoint_id="medsiglip",
        dialect="medsiglip",
        engine=engine,
        threads=threads,
        fetcher=Fetcher(),
        deployed_model_id="1",
        model=f"{PARENT}/models/medsiglip",
        model_version_id="1",
        model_display_name="toy",
    )
    database = Database(folder / "state", {})
    store = KeptJobs(database)
    batches = Batches(StandingTargets({"medsiglip": served}), BatchFiles(Fetcher(), folder / "files"), store)
    await batches.resume()
    if not store.kept():
        await batches.start(batches.read(REQUEST, PARENT))
    while batches.jobs.running():
        await asyncio.sleep(0.002)
    await batches.close()
    database.close()
    with suppress(Exception):
        engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
