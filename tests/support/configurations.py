"""Terraform's own verbs in tests: our configurations in a copy of their own, and what a run said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SOURCE = Path(__file__).parents[2] / "terraform"
"""The configurations as they are in the repository."""
_DROPPED = ("TF_",)


def directories() -> list[str]:
    """All modules, roots and examples, such as ``modules/endpoint``."""
    found = {file.parent for kind in ("modules", "roots", "examples") for file in SOURCE.glob(f"{kind}/*/*.tf")}
    return sorted(str(folder.relative_to(SOURCE)) for folder in found)


def copied(folder: Path) -> Path:
    """All configurations, in ``folder``: what a run leaves beside them is not in the repository."""
    ignored = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfplan")
    return shutil.copytree(SOURCE, folder / "terraform", ignore=ignored)


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    def json(self) -> Json:
        found: Json = json.loads(self.out)
        return found

    def lines(self) -> list[Json]:
        """Of a command that says JSON line by line."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


@dataclass(frozen=True, slots=True)
class Cli:
    """The real terraform in one directory, attached to the stand-in."""

    directory: Path
    environment: Mapping[str, str]

    def __call__(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Said:
        """Run a verb; another exit code than these is a failure of the test."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        ran = subprocess.run(
            ["terraform", *arguments],
            cwd=self.directory,
            env={**kept, "TF_IN_AUTOMATION": "1", "TF_INPUT": "0", **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert ran.returncode in codes, (
            f"{arguments}: {ran.returncode}\n{ran.stdout[-6000:]}\n{ran.stderr[-6000:]}"
        )
        return Said(ran.returncode, ran.stdout, ran.stderr)

    def ready(self) -> Cli:
        """Itself, with modules and providers in place and no back end."""
        self("init", "-backend=false", "-no-color")
        return self

    def plan(self, *options: str) -> Json:
        """A plan as JSON."""
        file = self.directory / "test.tfplan"
        self("plan", "-no-color", f"-out={file}", *options)
        return self("show", "-json", str(file)).json()


@dataclass(frozen=True, slots=True)
class Runs:
    """What ``terraform test`` counted."""

    files: int
    passed: int
    others: int
    """Failed, errored and skipped."""

    @property
    def good(self) -> bool:
        """Whether tests ran and all passed. Terraform itself calls no tests at all a success."""
        return self.files > 0 and self.passed > 0 and self.others == 0


def runs(said: Said) -> Runs:
    """Of ``terraform test -json``."""
    lines = said.lines()
    summary: Json = next((line["test_summary"] for line in lines if "test_summary" in line), {})
    files = {line["test_file"]["path"] for line in lines if "test_file" in line}
    others = sum(int(summary.get(each, 0)) for each in ("failed", "errored", "skipped"))
    return Runs(len(files), int(summary.get("passed", 0)), others)


def checked(directory: Path) -> set[str]:
    """The variables of a directory that have a validation."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(directory.glob("*.tf")))
    found = re.split(r'^variable "(\w+)" \{$', text, flags=re.M)[1:]
    bodies = zip(found[::2], (rest.partition("\n}\n")[0] for rest in found[1::2]), strict=True)
    return {name for name, body in bodies if "validation {" in body}


def refused(directory: Path) -> set[str]:
    """The variables whose refusal some test of a directory expects."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in directory.glob("tests/*.tftest.hcl"))
    lists = re.findall(r"expect_failures\s*=\s*\[(.*?)\]", text, flags=re.S)
    return {name for each in lists for name in re.findall(r"var\.(\w+)", each)}
