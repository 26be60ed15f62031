"""The example that deploys on this machine does the whole act, and leaves its transcript and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "deploy_local"
TIMEOUT_S = 600
pytestmark = pytest.mark.timeout(TIMEOUT_S + 30)
pytest.importorskip("google.cloud.aiplatform", reason="medport[deploy] is not installed")


@dataclass(frozen=True)
class Played:
    """A run of the example that is over."""

    code: int
    printed: str
    errors: str
    out: Path
    elsewhere: tuple[Path, ...]
    """Directories where it could have left something: home, temporary, working."""

    @property
    def transcript(self) -> str:
        return (self.out / "transcript.txt").read_text("utf-8")

    def commands(self) -> list[tuple[str, int]]:
        """What was typed, and its exit code."""
        found = re.findall(r"^\$ medport (.*?)\n(?:.*?)^\[exit (\d+), ", self.transcript, re.M | re.S)
        return [(words, int(code)) for words, code in found]

    def printed_by(self, command: str, *, turn: int = 0) -> str:
        """What a command printed, at its first or a later turn."""
        found = re.findall(rf"^\$ medport {re.escape(command)}.*?\n(.*?)^\[exit ", self.transcript, re.M | re.S)
        return str(found[turn])


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    home, temporary, working = (tmp_path_factory.mktemp(name) for name in ("home", "temporary", "working"))
    out = tmp_path_factory.mktemp("out")
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE / "deploy_local.py"), "--out", str(out)],
        cwd=working,
        env={**os.environ, "HOME": str(home), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            printed, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.terminate()  # it ends its server; nothing if it is over
    return Played(process.returncode, printed, errors, out, (home, temporary, working))


def test_every_step_does_what_it_should(played: Played) -> None:
    assert played.code == 0, played.printed[-4000:] + played.errors[-2000:]
    assert "All as it should be" in played.printed.splitlines()[-1]
    assert played.errors == ""


def test_transcript_is_what_was_printed(played: Played) -> None:
    assert played.transcript == played.printed


def test_each_command_ends_with_the_code_that_its_result_has(played: Played) -> None:
    codes = [(words.split()[1], code) for words, code in played.commands() if words.startswith("deploy ")]

    assert codes == [
        ("init", 0),
        ("lock", 0),
        ("plan", 2),
        ("apply", 0),
        ("lock", 0),
        ("plan", 2),
        ("apply", 1),
        ("plan", 2),
        ("apply", 0),
        ("status", 0),
        ("promote", 0),
        ("rollback", 0),
        ("history", 0),
        ("verify", 0),
        ("check-report", 0),
        ("destroy", 0),
    ]


def test_failing_gate_is_named_with_its_limit_and_the_old_split_is_back(played: Played) -> None:
    printed = played.printed_by("deploy apply", turn=1)
    after = played.transcript.split("== A canary that fails")[1].split("\n== ")[0]

    assert "error_ratio" in printed
    assert "0.01" in printed
    assert re.search(r"traffic of \S+: \{'\d+': 100\}", after)
    assert "shares that the new fleet had: [25, 50" in after


def test_answer_says_which_bytes_gave_it(played: Played) -> None:
    said = dict(re.findall(r"^  (\w+) +(\S+)$", played.transcript, re.M))

    assert re.fullmatch(
        r"projects/\d+/locations/europe-west4/endpoints/mp-chest--medgemma-phantom", said["endpoint"]
    )
    assert re.fullmatch(r"[0-9a-f]{40}", said["revision"])
    assert {len(said[name]) for name in ("image_digest", "snapshot_sha256", "lock_id")} == {64}


def test_nothing_is_left_but_the_transcript(played: Played) -> None:
    assert [each.name for each in played.out.iterdir()] == ["transcript.txt"]
    assert [[*each.iterdir()] for each in played.elsewhere] == [[], [], []]
    assert [line for line in command_lines() if str(played.out) in line] == []
    assert "nothing left" in played.transcript


def command_lines() -> list[str]:
    """Of all processes of this machine."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found.append(each.read_bytes().decode(errors="replace"))
    return found


def test_transcript_holds_no_key_and_no_path_of_this_machine(played: Played) -> None:
    words = re.findall(r"\S+", played.transcript)

    assert not [each for each in words if each.startswith("mp_") or "PRIVATE KEY" in each]
    assert str(played.out) not in played.transcript
    assert str(ROOT) not in played.transcript
