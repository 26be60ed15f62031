"""Named keys: the file, who they are, and what changes while the server runs."""

from __future__ import annotations

import hashlib
import json
import logging
import stat
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medport.errors import AuthError, ConfigError, Forbidden
from medport_local import cli_keys
from medport_local.serving import keys
from medport_local.serving.identity import ANYONE
from medport_local.serving.keyring import KeyRing
from medport_local.serving.limits import Rate
from medport_local.serving.verbs import ACTIONS

NOON = datetime(2026, 12, 31, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_key_is_not_in_its_file_and_others_cannot_read_it(file: Path) -> None:
    key = keys.add(file, "gateway")

    text = file.read_text()
    assert key not in text
    assert key.removeprefix("mp_") not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_key_has_256_random_bits(file: Path) -> None:
    made = {keys.add(file, f"k{i}") for i in range(20)}

    assert len(made) == 20
    assert all(len(key) == len("mp_") + 43 for key in made)


def test_key_is_known_by_what_it_may_do(file: Path) -> None:
    key = keys.add(file, "gw", models=["medgemma"], actions=["infer"], rate="60/min", concurrent=4)

    principal = KeyRing(file=file).identify(key)

    assert principal.name == "gw"
    assert (principal.rate, principal.concurrent) == (Rate(60, 60), 4)
    principal.check("infer")
    principal.check_model("medgemma")
    with pytest.raises(Forbidden, match="read"):
        principal.check("read")
    with pytest.raises(Forbidden) as refused:
        principal.check_model("medgemma_dicom")
    assert "medgemma" not in str(refused.value)


def test_key_without_a_scope_may_infer_and_read_on_all_models_and_nothing_else(file: Path) -> None:
    key = keys.add(file, "gw")

    principal = KeyRing(file=file).identify(key)

    assert principal.may("anything")
    assert principal.actions == {"infer", "read"}


@pytest.mark.parametrize("token", ["", "canary", "' OR 1=1 --", "mp_", "x" * 10_000, "\udc80", "ключ", "\x00"])
def test_unknown_key_is_refused(file: Path, token: str) -> None:
    keys.add(file, "gw")

    with pytest.raises(AuthError) as refused:
        KeyRing(file=file).identify(token)
    assert not isinstance(refused.value, Forbidden)
    assert not token or token not in str(refused.value)


def test_digest_in_the_file_is_no_key(file: Path) -> None:
    keys.add(file, "gw")
    digest = json.loads(file.read_text())["keys"][0]["sha256"]

    with pytest.raises(AuthError):
        KeyRing(file=file).identify(digest)


def test_key_of_the_environment_may_do_everything_beside_the_file(file: Path) -> None:
    named = keys.add(file, "gw", actions=["read"])
    ring = KeyRing("the-root-key", file)

    root = ring.identify("the-root-key")

    assert root.actions == set(ACTIONS)
    assert root.may("anything")
    assert ring.identify(named).name == "gw"


def test_without_keys_everyone_is_let_in() -> None:
    ring = KeyRing()

    assert ring.identify("") is ANYONE
    assert not ring.guarded


def test_empty_file_of_keys_lets_nobody_in(file: Path) -> None:
    file.write_text('{"version": 1, "keys": []}')
    file.chmod(0o600)

    with pytest.raises(AuthError):
        KeyRing(file=file).identify("")


def test_key_is_taken_until_the_day_it_expires(file: Path) -> None:
    clock = Clock(NOON)
    key = keys.add(file, "gw", expires=date(2027, 1, 1))
    ring = KeyRing(file=file, clock=clock)

    ring.identify(key)
    clock.now = datetime(2027, 1, 1, tzinfo=UTC).timestamp()

    with pytest.raises(AuthError, match="expired"):
        ring.identify(key)


def test_expiry_without_a_zone_is_refused(file: Path) -> None:
    keys.add(file, "gw", expires=date(2027, 1, 1))
    file.write_text(file.read_text().replace("2027-01-01T00:00:00Z", "2027-01-01T00:00:00"))

    with pytest.raises(ConfigError, match="timezone"):
        KeyRing(file=file)


def test_change_of_the_file_is_followed_without_a_restart(file: Path) -> None:
    clock = Clock(0.0)
    first = keys.add(file, "first")
    ring = KeyRing(file=file, monotonic=clock)

    second = keys.add(file, "second")
    keys.revoke(file, "first")
    clock.now += 1.5

    assert ring.identify(second).name == "second"
    with pytest.raises(AuthError):
        ring.identify(first)


def test_broken_file_leaves_the_keys_of_before_and_says_so(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(0.0)
    key = keys.add(file, "gw")
    ring = KeyRing(file=file, monotonic=clock)

    file.write_text("{ CANARY")
    clock.now += 1.5

    assert ring.identify(key).name == "gw"
    assert "stay in force" in caplog.text
    assert "CANARY" not in caplog.text


def test_file_that_others_can_read_is_warned_about(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys.add(file, "gw")
    file.chmod(0o644)

    with caplog.at_level(logging.WARNING):
        keys.load(file)

    assert "chmod 600" in caplog.text


ENTRY = {"name": "a", "sha256": "0" * 64, "models": ["*"], "actions": ["infer"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"),
        ('{"version": 2, "keys": []}', "version"),
        (json.dumps({"keys": [{k: v for k, v in ENTRY.items() if k != "models"}]}), "models"),
        (json.dumps({"keys": [{k: v for k, v in ENTRY.items() if k != "actions"}]}), "actions"),
        (json.dumps({"keys": [{**ENTRY, "actions": ["everything"]}]}), "actions"),
        (json.dumps({"keys": [{**ENTRY, "name": "a b"}]}), "name"),
        (json.dumps({"keys": [{**ENTRY, "sha256": "abc"}]}), "sha256"),
        (json.dumps({"keys": [{**ENTRY, "rate": "often"}]}), "rate"),
        (json.dumps({"keys": [{**ENTRY, "scope": "x"}]}), "scope"),
        (json.dumps({"keys": [ENTRY, {**ENTRY, "sha256": "1" * 64}]}), "same name"),
        (json.dumps({"keys": [ENTRY, {**ENTRY, "name": "b"}]}), "same sha256"),
        (json.dumps({"keys": [{**ENTRY, "name": "root"}]}), "root"),
    ],
)
def test_file_of_another_form_is_refused_by_the_field(file: Path, content: str, said: str) -> None:
    file.write_text(content)
    file.chmod(0o600)

    with pytest.raises(ConfigError, match=said):
        KeyRing(file=file)


def test_file_that_is_not_there_is_said_with_the_remedy(file: Path) -> None:
    with pytest.raises(ConfigError, match="medport keys add"):
        KeyRing(file=file)


def test_name_is_given_once(file: Path) -> None:
    keys.add(file, "gw")

    with pytest.raises(ConfigError, match="there is a key gw"):
        keys.add(file, "gw")


def test_command_prints_the_key_alone_and_lists_no_secret(file: Path) -> None:
    run = CliRunner()
    made = run.invoke(
        cli_keys.app,
        ["add", "gw", "--keys", str(file), "--model", "medgemma", "--action", "infer", "--rate", "60/min",
         "--concurrent", "4", "--expires", "2027-01-01"],
    )  # fmt: skip
    key = made.stdout.strip()

    listed = run.invoke(cli_keys.app, ["list", "--keys", str(file)])
    as_json = json.loads(run.invoke(cli_keys.app, ["list", "--keys", str(file), "--json"]).stdout)

    assert KeyRing(file=file, clock=Clock(NOON)).identify(key).name == "gw"
    assert "only time" in made.stderr
    for part in ("gw", "medgemma", "infer", "60/min", "4 at once", "2027-01-01"):
        assert part in listed.stdout
    assert key not in listed.stdout
    assert "sha256" not in as_json["keys"][0]
    assert as_json["keys"][0]["concurrent"] == 4


def test_command_revokes(file: Path) -> None:
    run = CliRunner()
    key = run.invoke(cli_keys.app, ["add", "gw", "--keys", str(file)]).stdout.strip()

    assert run.invoke(cli_keys.app, ["revoke", "gw", "--keys", str(file)]).exit_code == 0

    with pytest.raises(AuthError):
        KeyRing(file=file).identify(key)
    assert isinstance(run.invoke(cli_keys.app, ["revoke", "gw", "--keys", str(file)]).exception, ConfigError)
