"""Which bytes answered: the same pins in resources, headers, lists of models and the audit log, for years."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.local_server import LocalServer, local_server
from support.running import LoopThread
from typer.testing import CliRunner

from medport.wire.vertex import ModelResource, Pins, pins_from_model
from medport_local import app, cli_audit
from medport_local.app import Settings
from medport_local.cli_ready import Address, as_text
from medport_local.phantom import weights_dir
from medport_local.serving import chain
from medport_local.serving.audit import AuditLog
from medport_local.serving.routes import ContainerRoutes
from medport_local.snapshot import open_snapshot

LOCK, IMAGE = "a1" * 32, "b2" * 32
PARENT = {"model_id": "medport/elder", "revision": "c" * 40, "snapshot_sha256": "d" * 64}
HERE = "/v1/projects/local/locations/europe-west4"
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
TEXT = {"instances": [{"text": "normal"}]}

ASKED: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "openai chat": ("medgemma", "/v1/chat/completions", {"model": "medgemma", **CHAT}),
    "openai stream": ("medgemma", "/v1/chat/completions", {"model": "medgemma", **CHAT, "stream": True}),
    "openai embeddings": ("medsiglip", "/v1/embeddings", {"model": "medsiglip", "input": "normal"}),
    "predict": ("medsiglip", f"{HERE}/endpoints/medsiglip:predict", TEXT),
    "raw predict": ("medgemma", f"{HERE}/endpoints/medgemma:rawPredict", CHAT),
    "dicom dialect": ("medgemma", f"{HERE}/endpoints/medgemma-dicom:predict", {"instances": [CHAT]}),
    "endpoint's chat": ("medgemma", f"{HERE}/endpoints/medgemma/chat/completions", CHAT),
    "container": ("medgemma", "/container/predict", CHAT),
}


def derived(source: Path, target: Path) -> Path:
    """A copy whose manifest names a parent."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | {"parent": PARENT}))
    return target


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def audit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "log"


@pytest.fixture(scope="module")
def server(
    loop: LoopThread,
    gemma_folder: Path,
    siglip_folder: Path,
    audit_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("derived")
    settings = Settings(
        snapshots={
            "medgemma": derived(gemma_folder, folder / "gemma"),
            "medsiglip": derived(siglip_folder, folder / "siglip"),
        },
        lock_id=LOCK,
        image_digest=IMAGE,
        audit_dir=audit_dir,
        container=ContainerRoutes("/container/predict", "/container/health"),
    )
    with local_server(loop, settings) as running:
        yield running


def pins_of(server: LocalServer, family: str) -> Pins:
    pins: Pins = server.app.state.deployed[family].pins
    return pins


def test_pins_are_complete_and_are_the_snapshot_s(server: LocalServer) -> None:
    snapshot = server.app.state.deployed["medgemma"].snapshot

    assert pins_of(server, "medgemma") == Pins(
        model_id="medport/medgemma-toy",
        revision=snapshot.revision,
        image_digest=IMAGE,
        snapshot_sha256=open_snapshot(snapshot.directory).snapshot_sha256,
        lock_id=LOCK,
        notice="Toy model. Not for medical use.",
        parent=f"medport/elder@{'c' * 40} sha256:{'d' * 64}",
    )


def test_model_resource_carries_them_all(server: LocalServer) -> None:
    with server.client() as client:
        resource = client.get(f"{HERE}/models/medgemma").json()

    assert pins_from_model(ModelResource.model_validate(resource)) == pins_of(server, "medgemma")


@pytest.mark.parametrize("form", ASKED)
def test_every_answer_names_the_bytes_in_its_headers(server: LocalServer, form: str) -> None:
    family, path, body = ASKED[form]

    with server.client() as client:
        answer = client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    expected = pins_of(server, family)
    assert answer.headers["X-Medport-Model-Id"] == expected.model_id
    assert answer.headers["X-Medport-Revision"] == expected.revision
    assert answer.headers["X-Medport-Snapshot-Sha256"] == expected.snapshot_sha256
    assert answer.headers["X-Medport-Parent"] == expected.parent
    assert answer.headers["X-Medport-Lock-Id"] == LOCK
    assert answer.headers["X-Medport-Image-Digest"] == IMAGE


@pytest.mark.parametrize("form", ASKED)
def test_audit_line_has_what_the_answer_said(server: LocalServer, audit_dir: Path, form: str) -> None:
    family, path, body = ASKED[form]
    request_id = f"audit-{form.replace(' ', '-').replace(chr(39), '')}"

    with server.client(headers={"X-Request-Id": request_id}) as client:
        client.post(path, json=body)

    records = chain.find(audit_dir, request_id)
    assert records
    for record in records:
        assert {key: record[key] for key in pins_of(server, family).as_dict()} == pins_of(server, family).as_dict()


def test_ready_server_tells_its_operator_the_lock(server: LocalServer) -> None:
    address = Address(url="http://127.0.0.1:1", ca_file=None, api_key_env=None)

    said = as_text(address, list(server.app.state.deployed.values()), server.app.state.standing)

    assert f"  Lock: {LOCK}" in said.splitlines()


def test_list_of_models_names_the_bytes_of_each(server: LocalServer) -> None:
    with server.client() as client:
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}

    pins = pins_of(server, "medsiglip")
    card = cards["medsiglip"]
    assert (card["root"], card["revision"]) == (pins.model_id, pins.revision)
    assert (card["snapshot_sha256"], card["derived_from"]) == (pins.snapshot_sha256, pins.parent)
    assert (card["lock_id"], card["image_digest"]) == (LOCK, IMAGE)


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie: x", "mödel/ß", "a\x00b", "x" * 300])
def test_name_that_no_header_may_hold_is_escaped(name: str) -> None:
    headers = Pins(model_id=name).headers()

    assert list(headers) == ["X-Medport-Model-Id"]
    assert headers["X-Medport-Model-Id"].isascii()
    assert headers["X-Medport-Model-Id"].isprintable()
    assert httpx.Headers(headers)["x-medport-model-id"]


def test_what_is_not_known_is_no_header() -> None:
    assert Pins().headers() == {}


# A year later


@dataclass
class Clock:
    now: datetime

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest.fixture(scope="module")
def year(
    loop: LoopThread, siglip_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Mapping[str, Pins]]:
    """A log of three months in thirteen, by two snapshots under two locks, and the pins of each request."""
    directory = tmp_path_factory.mktemp("year") / "log"
    answered: dict[str, Pins] = {}

    @contextmanager
    def serving(moment: str, folder: Path, lock_id: str, image: str | None) -> Iterator[Callable[[str], None]]:
        settings = Settings(
            snapshots={"medsiglip": folder}, lock_id=lock_id, image_digest=image, audit_dir=directory
        )
        clock = Clock(datetime.fromisoformat(moment).replace(tzinfo=UTC))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "AuditLog", partial(AuditLog, clock=clock))
            with local_server(loop, settings) as server, server.client() as client:

                def ask(request_id: str) -> None:
                    done = client.post("/v1/embeddings", json={"input": "x"}, headers={"X-Request-Id": request_id})
                    assert done.status_code == 200
                    answered[request_id] = pins_of(server, "medsiglip")

                yield ask

    with serving("2025-11-20", siglip_folder, "1" * 64, None) as ask:
        ask("first")
    with serving("2026-02-03", siglip_folder, "1" * 64, None) as ask:
        ask("second")
        ask("third")
    with serving("2026-11-25", weights_dir("medsiglip"), "2" * 64, IMAGE) as ask:
        ask("last")
    return directory, answered


@pytest.mark.parametrize("request_id", ["first", "second", "third", "last"])
def test_log_of_a_year_says_which_bytes_answered(year: tuple[Path, Mapping[str, Pins]], request_id: str) -> None:
    directory, answered = year

    said = CliRunner().invoke(cli_audit.app, ["show", request_id, "--dir", str(directory), "--json"])
    for_people = CliRunner().invoke(cli_audit.app, ["show", request_id, "--dir", str(directory)])

    expected = answered[request_id].as_dict()
    (record,) = json.loads(said.stdout)["records"]
    assert {key: record[key] for key in expected} == expected
    lines = dict(line.split(maxsplit=1) for line in for_people.stdout.splitlines() if " " in line)
    for key, value in expected.items():
        assert lines[key].strip() == (value or "-")


def test_snapshots_of_the_year_are_two_and_each_request_has_its_own(year: tuple[Path, Mapping[str, Pins]]) -> None:
    _, answered = year

    assert answered["first"] == answered["third"]
    assert answered["first"].snapshot_sha256 != answered["last"].snapshot_sha256
    assert answered["first"].lock_id != answered["last"].lock_id


@pytest.mark.parametrize(
    ("since", "gone", "lines"),
    [("2025-11-01", 0, 4), ("2026-01-15", 1, 3), ("2026-11-01", 2, 1)],
)
def test_log_of_a_year_is_verified_also_from_where_it_still_exists(
    year: tuple[Path, Mapping[str, Pins]], tmp_path: Path, since: str, gone: int, lines: int
) -> None:
    directory = Path(shutil.copytree(year[0], tmp_path / "log"))
    for path in chain.files(directory)[:gone]:
        path.unlink()

    done = CliRunner().invoke(cli_audit.app, ["verify", str(directory), "--since", since, "--json"])

    report = json.loads(done.stdout)
    assert (done.exit_code, report["unbroken"], report["fault"]) == (0, True, None)
    assert report["lines"] >= lines


def test_other_digest_written_into_a_line_of_last_year_breaks_the_chain(
    year: tuple[Path, Mapping[str, Pins]], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(year[0], tmp_path / "log"))
    first = chain.files(directory)[0]
    pins = year[1]
    old, new = pins["first"].snapshot_sha256, pins["last"].snapshot_sha256
    assert old
    assert new
    first.write_bytes(first.read_bytes().replace(old.encode(), new.encode()))

    done = CliRunner().invoke(cli_audit.app, ["verify", str(directory), "--since", "2025-11-01", "--json"])

    assert done.exit_code == 1
    assert json.loads(done.stdout)["fault"] == "the line was changed"
