"""The package that the schema is read from, and where what was read is kept.

Nothing of it is in the repository: the package is downloaded once, by pip and by its hash, into
``~/.cache/medport-tests``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import generated
from .wanted import WANTED

REQUIREMENT = "cdktn-provider-google==21.1.0"
SHA256 = "157dead5025d5db5abe48e40cc49f0b6a4d8088fd0498eb17ad5a36bca811b2a"
PROVIDER_VERSION = "8.7.0"
"""Of Google's provider that the package was generated from."""
_FILE = "cdktn_provider_google-21.1.0-py3-none-any.whl"


class WheelMissing(Exception):
    """The package is not here and pip cannot bring it."""


def schema_file() -> Path:
    """A JSON file with the schema of the wanted types; it is made if it is not there.

    Raises:
        WheelMissing: pip cannot download the package.
        generated.FormChanged: the package no longer says what we read from it.
    """
    file = _cache() / f"google-{PROVIDER_VERSION}-{_fingerprint()}.json"
    if not file.exists():
        facts = generated.read(_wheel(), WANTED, provider_version=PROVIDER_VERSION)
        _written(file, json.dumps(facts, indent=1, sort_keys=True))
    return file


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "medport-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint() -> str:
    """Of all that decides what is in the file: the package, the wanted types and the code that reads them."""
    parts = (SHA256, *sorted(WANTED), Path(generated.__file__).read_text(encoding="utf-8"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _wheel() -> Path:
    wheel = _cache() / _FILE
    if not wheel.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            _download(Path(folder))
            (Path(folder) / _FILE).replace(wheel)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        wheel.unlink()
        raise WheelMissing(f"{_FILE} had the sha256 {found}, not {SHA256}; it was removed")
    return wheel


def _download(folder: Path) -> None:
    asked = folder / "requirements.txt"
    asked.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-d", str(folder), "-r", str(asked)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as failed:
        said = [line for line in failed.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise WheelMissing(f"pip cannot download {REQUIREMENT}: {said[-1].strip()}") from failed
    except subprocess.TimeoutExpired as late:
        raise WheelMissing(f"pip did not download {REQUIREMENT} in {late.timeout:.0f} s") from late


def _written(file: Path, text: str) -> None:
    """Whole or not at all: several test processes may do this at once."""
    handle, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text)
    Path(name).replace(file)
