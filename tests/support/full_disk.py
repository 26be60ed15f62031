"""A program that fills the disk of a state: ``python full_disk.py DIRECTORY``, on a disk of some 500 kB.

Prints the class of the error, then what is read afterwards, then what is read once there is space again.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from medport.errors import MedportError
from medport_local.control.database import Database


def main(directory: Path) -> None:
    database = Database(directory / "plane", {})
    put(database, "a", "kept")
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))
    for i in range(1000):  # the log may have some room left
        try:
            put(database, f"more {i}", "x" * 4000)
        except MedportError as error:
            print(type(error).__name__)
            break
    print(*sorted({value for value in values(database) if "x" not in value}))
    filler.unlink()
    put(database, "b", "again")
    print(*values(database)[-1:])
    database.close()


def put(database: Database, key: str, value: str) -> None:
    with database.writing() as tx:
        tx.run("INSERT INTO meta VALUES (?, ?)", key, value)


def values(database: Database) -> list[str]:
    with database.reading() as tx:
        return [row["value"] for row in tx.all("SELECT value FROM meta ORDER BY length(key) DESC, key")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
