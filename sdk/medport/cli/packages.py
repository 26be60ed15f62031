"""What is installed of medport's extras, and whether it can be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

IMPORTS: Mapping[str, tuple[str, ...]] = {
    "vertex": ("google.auth", "cryptography"),
    "dicom": ("pydicom",),
    "local": (
        "torch", "transformers", "tokenizers", "safetensors", "sentencepiece", "google.protobuf", "jinja2",
        "starlette", "uvicorn", "cryptography", "llguidance", "filelock",
    ),
    "fetch": ("google.cloud.storage", "dicomweb_client", "google.auth"),
    "slides": ("openslide",),
    "observe": ("prometheus_client", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    "deploy": ("google.cloud.aiplatform", "python_terraform", "google.auth"),
    "openai": ("openai",),
    "bundle": ("model_signing", "OpenSSL", "cyclonedx", "packaging"),
    "vllm": ("vllm",),
}  # fmt: skip
"""The modules of each extra that serves a site."""
_TIMEOUT_S = 300.0
# Says which module could not be imported and by which error; what the error says may hold paths.
_PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as fault:
        print(name, type(fault).__name__)
        sys.exit(1)
"""


def requirements(extra: str) -> list[str]:
    """The distributions that an extra of medport brings."""
    wanted = re.compile(rf"""([A-Za-z0-9._-]+).*;.*extra == ["']{re.escape(extra)}["']""")
    return [match.group(1) for line in metadata.requires("medport") or [] if (match := wanted.match(line))]


def version(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def whole_extras() -> list[str]:
    """The extras whose every distribution is installed."""
    return [extra for extra in IMPORTS if (names := requirements(extra)) and all(map(version, names))]


def import_fault(modules: Sequence[str]) -> str | None:
    """Import modules in a process of their own, which may crash; ``module ErrorType`` of the first that fails."""
    command = [sys.executable, "-c", _PROGRAM, *modules]
    try:
        done = subprocess.run(  # noqa: S603  no shell, and the program is this interpreter
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return "takes too long"
    if done.returncode == 0:
        return None
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"exit code {done.returncode}"
