"""Commands as they are typed, what they print, and a transcript of both."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Unexpected(Exception):
    """A step did not do what it should."""


class Terminal:
    """Runs ``medport`` commands in one directory, shows them, and keeps what was shown.

    Args:
        directory: where commands run. Its name is left out of what is shown, so that transcripts can be compared.
        transcript: the file; one that is there is replaced.
        environment: of the commands, the whole of it.
    """

    def __init__(self, directory: Path, transcript: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.environment = dict(environment)
        self._transcript = transcript.open("w", encoding="utf-8")

    def close(self) -> None:
        """End the transcript."""
        self._transcript.close()

    def show(self, text: str = "") -> None:
        """Print a line and keep it."""
        line = text.replace(f"{self.directory}/", "").replace(str(self.directory), ".")
        print(line, flush=True)
        self._transcript.write(line + "\n")
        self._transcript.flush()

    def act(self, title: str) -> None:
        """Begin a part."""
        self.show(f"\n== {title}")

    def run(
        self, *words: str, expect: int = 0, says: Sequence[str] = (), hide: bool = False, quiet: bool = False
    ) -> str:
        """Type a ``medport`` command and wait for its end; what it printed on stdout and stderr, in their order.

        Args:
            expect: the exit code that is right.
            says: texts that must be in what it prints.
            hide: do not show what it prints: it is a secret.
            quiet: leave out what it prints on stderr, such as its progress.

        Raises:
            Unexpected: another exit code, or a text is missing.
        """
        self.show(f"$ medport {' '.join(_quoted(word) for word in words)}{' 2>/dev/null' if quiet else ''}")
        began = time.monotonic()
        printed = []
        with subprocess.Popen(
            command(*words),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append(line)
                if not hide:
                    self.show(line.rstrip("\n"))
        if hide:
            self.show("(not shown: it is a secret)")
        self.show(f"[exit {process.returncode}, {time.monotonic() - began:.1f} s]\n")
        if process.returncode != expect:
            raise Unexpected(f"medport {' '.join(words)}: exit {process.returncode}, not {expect}")
        text = "".join(printed)
        for each in says:
            if each not in text:
                raise Unexpected(f"medport {' '.join(words)}: did not say {each!r}")
        return text


def command(*words: str) -> list[str]:
    """The ``medport`` of this Python, wherever it is installed."""
    return [sys.executable, "-m", "medport.cli", *words]


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word or not word else word
