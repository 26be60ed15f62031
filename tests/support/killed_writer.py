"""A program that writes to a state until it is killed: ``python killed_writer.py DIRECTORY ROUNDS``.

In each round a child counts upwards, a transaction a number, and tells each number once its transaction has ended;
the parent kills it with SIGKILL after another time each round. It prints, a line a round, the last number told.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from medport_local.control.database import Database


def main(directory: Path, rounds: int) -> None:
    for i in range(rounds):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            count(directory, writing)
        os.close(writing)
        told = os.read(reading, 8)  # it has opened the state
        time.sleep(0.0007 * (i % 29))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reading, 8 * 4096):
            told += more
        os.close(reading)
        print(int.from_bytes(told[-8:], "big"), flush=True)


def count(directory: Path, writing: int) -> None:
    database = Database(directory, {})
    while True:
        with database.writing() as tx:
            number = tx.next("told")
            tx.run("INSERT INTO meta VALUES (?, ?)", f"{number:08}", "kept")
        os.write(writing, number.to_bytes(8, "big"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
