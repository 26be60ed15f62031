"""What importing a module must not bring along."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("medport_local", {"torch", "transformers", "starlette"}),
        ("medport_local.snapshot", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.scheduler", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.blocks", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.sequence", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.grammar", {"torch", "transformers", "starlette", "llguidance"}),
        ("medport_local.engine.schema", {"torch", "transformers", "starlette", "llguidance"}),
        ("medport_local.engine.detokenizer", {"torch", "transformers", "starlette"}),
        ("medport_local.control.resources", {"torch", "transformers", "starlette"}),
        ("medport_local.cli", {"torch", "transformers", "starlette"}),
        ("medport_local.cli_lock", {"torch", "transformers", "starlette"}),
        ("medport_local.selection", {"torch", "transformers", "starlette"}),
        ("medport_local.container_settings", {"torch", "transformers", "starlette"}),
        ("medport_local.engine.engine", {"starlette", "uvicorn"}),
    ],
)
def test_module_does_not_import_what_it_must_not(module: str, banned: set[str]) -> None:
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"

    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert not banned & set(loaded.stdout.split())
