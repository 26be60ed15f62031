"""One engine in a process of its own, driven by lines of JSON: the others that ``medport bench`` measures against.

Run as a script, ``python worker.py KIND OPTIONS``, by any interpreter that has that one engine; so neither this
file nor ``rival_KIND.py`` beside it imports anything of medport.

Protocol: when the model is loaded the process writes ``{"value": facts}``. It then reads ``{"do": NAME, …}`` and
answers each with ``{"value": …}`` or ``{"error": text}``, until stdin ends. All prompts are random tokens, so an
error's text can hold nothing of a patient.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Protocol

COMMANDS = ("decode", "prefill", "serve", "encode_images", "embed_images", "memory", "second_question", "stall")
_SHOWN_CHARACTERS = 200


class Rival(Protocol):
    """One engine. Beside these methods it has those of ``COMMANDS`` that it says it can."""

    packages: tuple[str, ...]
    """Distributions whose versions belong to the figures."""

    def load(self) -> dict[str, Any]:
        """Load the model; gives ``can``, the commands, and ``threads``, and what else the report should say."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


class TextRival(Rival, Protocol):
    """One that generates text."""

    def decode(self, batch: int, prompt: int, tokens: int, seed: int) -> list[float]:
        """Seconds of each of ``tokens`` steps in which ``batch`` sequences get one token each.

        Args:
            prompt: tokens before the first step, in each sequence.
        """
        ...

    def prefill(self, length: int, seed: int) -> float:
        """Seconds from a prompt of ``length`` tokens to its first token."""
        ...


def draw_from(low: int, high: int) -> Callable[[list[int], int], list[list[int]]]:
    """Makes prompts of random token ids from ``low`` to below ``high``; the same for every engine by the seed."""

    def draw(lengths: list[int], seed: int) -> list[list[int]]:
        source = random.Random(seed)  # noqa: S311  nothing secret
        return [[source.randrange(low, high) for _ in range(length)] for length in lengths]

    return draw


def version_of(name: str) -> str | None:
    """Of an installed distribution; ``None`` if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those distributions that are installed."""
    found = {name: version_of(name) for name in names}
    found["python"] = sys.version.partition(" ")[0]
    return {name: number for name, number in found.items() if number}


def memory() -> dict[str, int | None]:
    """Bytes of this process that are resident, and the most that were; ``None`` where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {"resident_bytes": None, "peak_bytes": None}
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "resident_bytes": int(facts["VmRSS"].split()[0]) * 1024,
        "peak_bytes": int(facts["VmHWM"].split()[0]) * 1024,
    }


def answer_lines(rival: Rival, lines: IO[str], out: IO[str]) -> None:
    """Load an engine, then do what each line of ``lines`` says, until they end."""

    def told(work: Callable[[], Any]) -> bool:
        try:
            value = work()
        except Exception as fault:
            text = " ".join(str(fault).split())[:_SHOWN_CHARACTERS]
            answer = {"error": f"{type(fault).__name__}: {text}" if text else type(fault).__name__}
        else:
            answer = {"value": value}
        print(json.dumps(answer), file=out, flush=True)
        return "value" in answer

    if not told(lambda: {"versions": versions(rival.packages), **rival.load()}):
        return
    for line in lines:
        given = json.loads(line)
        command = given.pop("do")
        assert command in COMMANDS
        told(partial(memory if command == "memory" else getattr(rival, command), **given))
    rival.close()


def private_stdout() -> IO[str]:
    """Stdout for the protocol alone: what libraries print goes to stderr from here on."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def main() -> None:
    """Answer on stdin and stdout as the engine that the first argument names."""
    here = Path(__file__).resolve().parent
    # Python puts a script's folder first; its other files are none of the engine's business.
    sys.path[:] = [each for each in sys.path if not each or Path(each).resolve() != here]
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", DO_NOT_TRACK="1")
    kind, options = sys.argv[1:]
    given = json.loads(options)
    out = private_stdout()
    engine = runpy.run_path(str(here / f"rival_{kind}.py"))["Engine"]
    answer_lines(engine(given, draw_from(given["low"], given["high"])), sys.stdin, out)


if __name__ == "__main__":
    main()
