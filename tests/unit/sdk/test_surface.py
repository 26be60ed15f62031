"""The public surface: what is there, that both clients agree, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import medport


def test_what_is_public_is_what_is_visible() -> None:
    assert dir(medport) == list(medport.__all__)
    assert all(getattr(medport, name) is not None for name in medport.__all__)
    assert list(medport.__all__) == sorted(medport.__all__)


def test_both_clients_have_the_same_verbs_parameters_and_docstrings() -> None:
    def verbs(kind: type) -> dict[str, object]:
        return {n: f for n, f in inspect.getmembers(kind, callable) if not n.startswith("_")}

    blocking, awaited = verbs(medport.Client), verbs(medport.AsyncClient)

    assert blocking.keys() == awaited.keys()
    for name in blocking.keys() - {"from_config"}:
        ours, theirs = (inspect.signature(v[name]) for v in (blocking, awaited))  # type: ignore[arg-type]
        assert ours.parameters == theirs.parameters, name
        assert inspect.getdoc(blocking[name]) == inspect.getdoc(awaited[name]), name
        assert inspect.getdoc(blocking[name]), name


def test_importing_medport_loads_nothing_heavy() -> None:
    program = "import sys, medport; medport.Client; print('\\n'.join(sys.modules))"

    loaded = set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )

    # rich comes with httpx where it is installed, and google.cloud is an empty namespace that a .pth file makes.
    heavy = {"torch", "transformers", "google.auth", "google.cloud.aiplatform", "pydicom", "typer", "PIL.Image"}
    assert not heavy & loaded
    assert not {name for name in loaded if name.startswith("PIL.") and name.endswith("Plugin")}
