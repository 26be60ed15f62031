"""The stand-in as a process of its own, to which every terraform command attaches.

Terraform neither reads nor writes a lock file for it and does not check its version.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_TESTS = Path(__file__).parents[2]


@contextmanager
def attached(schema_file: Path, environment: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Run it until the block ends; gives the variables that terraform's commands need.

    Args:
        environment: of the stand-in, such as ``GOOGLE_VERTEX_AI_CUSTOM_ENDPOINT``, ``GOOGLE_OAUTH_ACCESS_TOKEN``
            and ``SSL_CERT_FILE``. Terraform's own environment does not reach a process that it attaches to.
    """
    with tempfile.TemporaryDirectory(prefix="tf") as folder, tempfile.TemporaryFile() as said:
        empty = Path(folder, "empty.tfrc")
        empty.touch()
        command = [sys.executable, "-m", "support.provider", str(schema_file), f"{folder}/socket"]
        env = {**os.environ, **(environment or {}), "PYTHONPATH": str(_TESTS)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=env, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                said.seek(0)
                assert line, said.read().decode()
                yield {
                    "TF_REATTACH_PROVIDERS": line.strip(),
                    "TF_CLI_CONFIG_FILE": str(empty),
                    "CHECKPOINT_DISABLE": "1",
                }
            finally:
                process.terminate()
                process.wait(20)
        said.seek(0)
        log = said.read().decode()
        assert "Traceback" not in log, f"the stand-in had a fault: {log[-3000:]}"


def reaching(url: str, ca_file: str, key: str, *, version: str = "v1") -> dict[str, str]:
    """The stand-in's environment for a control plane, as the real provider's would be.

    Args:
        url: without a path.
        ca_file: whose certificates to trust.
        key: sent as the bearer token.
    """
    return {
        "GOOGLE_VERTEX_AI_CUSTOM_ENDPOINT": f"{url}/{version}/",
        "GOOGLE_OAUTH_ACCESS_TOKEN": key,
        "SSL_CERT_FILE": ca_file,
    }
