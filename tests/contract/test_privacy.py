"""What is asked stays between the two ends: no log, stream, file or repr repeats it, on any backend."""

from __future__ import annotations

import base64
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medport import MedportError
from medport.images import load, prepare
from medport_local.phantom import files

from .conftest import API_KEY, Asked

CANARY = "CANARY-Baumgartner"


@pytest.fixture
def patient_file(tmp_path: Path) -> Path:
    """A DICOM object whose name and patient are canaries and whose pixels are like no others."""
    pydicom = pytest.importorskip("pydicom")
    pixels = np.random.default_rng(41).integers(0, 256, (96, 96), np.uint8)
    path = files.write_dicom(tmp_path / f"{CANARY}.dcm", pixels)
    ds = pydicom.dcmread(path)
    ds.PatientName, ds.PatientID = f"{CANARY}^Name", f"{CANARY}-ID"
    ds.save_as(path)
    return path


def asks(path: Path) -> dict[str, Callable[[Asked], Any]]:
    bad = path.with_name(f"{CANARY}-bad.png")
    bad.write_bytes(b"\x89PNG\r\n\x1a\n" + CANARY.encode())
    return {
        "chat": lambda c: c.chat(CANARY, path, system=CANARY, stop=[CANARY], max_tokens=4),
        "stream": lambda c: list(c.stream(CANARY, path, system=CANARY, max_tokens=4)),
        "stream left early": lambda c: left_early(c, path),
        "embed": lambda c: c.embed_images([path, bad]),
        "classify": lambda c: c.classify([path, bad], [CANARY, "normal"], templates=[f"{CANARY} {{}}"]),
        "bad image": lambda c: c.chat(CANARY, bad),
        "no such file": lambda c: c.chat(CANARY, str(path) + "x"),
        "wrong order": lambda c: c.chat([{"role": "user", "content": CANARY}] * 2),
        "too long": lambda c: c.chat(f"{CANARY} " * 3_000),
        "not fetched": lambda c: c.chat(CANARY, f"https://images.example/{CANARY}.png"),
        "option": lambda c: c.chat(CANARY, temperature=CANARY),
    }


def left_early(client: Asked, path: Path) -> None:
    with client.stream(CANARY, path, max_tokens=50) as stream:
        next(iter(stream))


def test_nothing_asked_is_found_in_any_sink(
    client: Asked,
    patient_file: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    caplog.set_level(logging.DEBUG)
    encoded = base64.b64encode(prepare(load(patient_file)).data).decode()
    said: list[str] = []

    for ask in asks(patient_file).values():
        try:
            result = ask(client)
        except MedportError as error:
            said += [str(error), repr(error), repr(vars(error))]
        else:
            said += [str(e) for e in getattr(result, "errors", {}).values()]

    said += [repr(client.place.name), caplog.text, *capfd.readouterr()]
    everything = "\n".join(said)
    assert "POST" in caplog.text, "the logs of both ends are among what was searched"
    assert CANARY not in everything
    assert API_KEY not in everything
    assert encoded[len(encoded) // 2 :][:40] not in everything
    assert [path for path in scratch.rglob("*") if path.is_file()] == []
