"""Bad snapshots against every way in which one is loaded: refused by name, before a weight is used.

The attacker has written the manifest too, except where the attack is that the bytes are others than it says.
``tests/conformance/REFUSALS.md`` has the whole list of attacks.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from support import forked
from support.stored import bring

from medport.errors import MedportError, VerificationError
from medport_local import container, inprocess
from medport_local import snapshot as snapshots
from medport_local.cli_lock import locked_model
from medport_local.container_settings import ContainerSettings
from medport_local.engine.loading import load_siglip
from medport_local.phantom import weights_dir
from medport_local.selection import Wanted, select
from medport_local.snapshot import Snapshot, digest_of, open_snapshot
from medport_local.snapshot_file import entry_of
from medport_local.sources import pull, source_for
from medport_local.store import Store, Stored

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good snapshot, to be spoiled."""
    return Path(shutil.copytree(weights_dir("medsiglip"), tmp_path / "snapshot"))


def remake(folder: Path, **changes: Any) -> None:
    """The manifest that fits the directory as it is: everything but the attack itself is right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    table = {name: entry_of(folder, name) for name in names if name != "manifest.json"}
    manifest |= {
        "files": {name: entry.model_dump() for name, entry in table.items()},
        "snapshot_sha256": digest_of(table),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


# Attacks


def with_header(folder: Path, change: Callable[[dict[str, Any]], Any], *, length: int | None = None) -> None:
    """The weights with another table in front; ``length``: what the first eight bytes say instead."""
    data = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = change(json.loads(data[8 : 8 + size]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    said = len(text) if length is None else length
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", said) + text + data[8 + size :])
    remake(folder)


def overlap(header: dict[str, Any]) -> dict[str, Any]:
    first, second = sorted(key for key in header if key != "__metadata__")[:2]
    return header | {second: dict(header[first])}


def twice(header: dict[str, Any]) -> bytes:
    first = next(key for key in header if key != "__metadata__")
    again = f"{{{json.dumps(first)}:{json.dumps(header[first])},".encode()
    return again + json.dumps(header).encode()[1:]


def config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
    remake(folder)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04\x95" + bytes(4096))
    remake(folder)


def indexed(shard: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shard, "b": WEIGHTS}}))
        remake(folder)

    return spoil


def beside(name: str, *, listed: bool) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(b"\x80\x04\x95cos\nsystem\n")
        if listed:
            remake(folder)

    return spoil


def linked(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"elsewhere-{name}")
        (folder / name).symlink_to(folder.parent / f"elsewhere-{name}")

    return spoil


def linked_folder(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder / "more").symlink_to(folder.parent / "elsewhere")


def listening(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(folder)  # a socket's path is short
        try:
            made.bind("tokens.json")
        finally:
            os.chdir(before)


def listed_as(name: str) -> Callable[[Path], None]:
    """The manifest names a file that is not in the directory, or leads out of it."""

    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = manifest["files"] | {name: manifest["files"]["config.json"]}
        table = {each: snapshots.FileEntry(**entry) for each, entry in files.items()}
        changes = {"files": files, "snapshot_sha256": digest_of(table)}
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return spoil


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    remake(folder)


def renamed(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: remake(folder, **changes)


ATTACKS: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "pickle named .safetensors": (pickled, r"model\.safetensors.*not a safetensors file"),
    "header past the file": (
        lambda folder: with_header(folder, lambda header: header, length=2**40),
        r"model\.safetensors.*longer than the file",
    ),
    "header of 2^63 bytes": (
        lambda folder: with_header(folder, lambda header: header, length=2**63),
        r"model\.safetensors.*longer than the file",
    ),
    "overlapping tensors": (lambda folder: with_header(folder, overlap), r"model\.safetensors.*overlaps another"),
    "tensor twice in a header": (lambda folder: with_header(folder, twice), r"model\.safetensors.*twice"),
    "weights cut off": (truncated, r"model\.safetensors.*bytes, and the file holds"),
    "index naming an absent shard": (indexed("model-00002-of-00002.safetensors"), "shard that is not there"),
    "index pointing out": (indexed("../../elsewhere.safetensors"), "shard that is not there"),
    "extra file": (beside("extra.json", listed=False), r"extra\.json.*not in the manifest"),
    "optimizer pickle beside the weights": (beside("optimizer.pt", listed=True), r"optimizer\.pt.*can hold code"),
    "random state beside the weights": (beside("rng_state.pth", listed=True), r"rng_state\.pth.*can hold code"),
    "old weights beside the new ones": (
        beside("pytorch_model.bin", listed=True),
        r"pytorch_model\.bin.*can hold code",
    ),
    "code beside the weights": (beside("modeling_siglip.py", listed=True), r"modeling_siglip\.py.*can hold code"),
    "link in place of the weights": (linked(WEIGHTS), r"model\.safetensors.*is a link"),
    "link in place of the settings": (linked("config.json"), r"config\.json.*is a link"),
    "link in place of the manifest": (linked("manifest.json"), r"manifest\.json.*is a link"),
    "link to a folder": (linked_folder, "more.*is a link"),
    "pipe": (lambda folder: os.mkfifo(folder / "tokens.json"), r"tokens\.json.*not a regular file"),
    "socket": (listening, r"tokens\.json.*not a regular file"),
    "device": (
        lambda folder: os.mknod(folder / "tokens.json", 0o20666, os.makedev(1, 3)),
        r"tokens\.json.*not a regular file",
    ),
    "path out of the directory": (listed_as("../config.json"), r"\.\./config\.json.*not a plain relative path"),
    "absolute path": (listed_as("/etc/passwd"), r"/etc/passwd.*not a plain relative path"),
    "backslash": (listed_as("..\\config.json"), "not a plain relative path"),
    "stream of another file": (listed_as("config.json:evil"), "not a plain relative path"),
    "name of 4,096 characters": (listed_as("x" * 4096), "is not a name of 1 to 512 characters"),
    "case twins": (listed_as("Config.json"), "differs from .* only in case"),
    "bit of the weights": (lambda folder: flip(folder / WEIGHTS), r"model\.safetensors.*(hash|sha256)"),
    "bit of the settings": (lambda folder: flip(folder / "config.json", 60), r"config\.json.*(hash|sha256)"),
    "bit of the tokenizer": (lambda folder: flip(folder / "spiece.model"), r"spiece\.model.*(hash|sha256)"),
    "digest that is none of its table": (renamed(snapshot_sha256="0" * 64), r"manifest\.json.*own table of files"),
    "auto_map": (
        lambda folder: config(folder, lambda c: c.update(auto_map={"AutoModel": "evil.Model"})),
        r"config\.json.*auto_map.*can make code run",
    ),
    "auto_map inside": (
        lambda folder: config(folder, lambda c: c["vision_config"].update(auto_map={})),
        r"config\.json.*auto_map.*can make code run",
    ),
    "_attn_implementation_internal": (
        lambda folder: config(folder, lambda c: c.update(_attn_implementation_internal="evil/kernel")),
        r"config\.json.*_attn_implementation_internal.*can make code run",
    ),
    "_attn key inside": (
        lambda folder: config(folder, lambda c: c["text_config"].update(_attn_implementation="evil/kernel")),
        r"config\.json.*_attn_implementation.*can make code run",
    ),
    "model of another kind": (
        lambda folder: config(folder, lambda c: c.update(model_type="llama", architectures=["LlamaForCausalLM"])),
        r"config\.json.*llama.*does not load",
    ),
    "family that it is not": (renamed(family="medgemma"), r"manifest\.json.*says medgemma, but"),
    "published model's name": (renamed(repo_id="google/medsiglip-448"), r"config\.json.*google/medsiglip-448 has"),
}


def spoil(attack: str, folder: Path) -> str:
    """Carry it out; what must be said."""
    act, said = ATTACKS[attack]
    if attack == "device" and not _makes_devices(folder):
        pytest.skip("only root makes devices")
    act(folder)
    return said


def _makes_devices(folder: Path) -> bool:
    try:
        os.mknod(folder.parent / "null", 0o20666, os.makedev(1, 3))
    except OSError:
        return False
    return True


# Ways in


def checked_at_once(folder: Path, _: Path) -> None:
    open_snapshot(folder)


def weights_checked_at_loading(folder: Path, _: Path) -> None:
    load_siglip(open_snapshot(folder, defer_weights=True), device="cpu")


def in_process(folder: Path, _: Path) -> None:
    inprocess.start({"medsiglip": folder}).close()


def as_container(folder: Path, _: Path) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
            settings = ContainerSettings(models=(str(folder),))
            await container.run(settings, listener, stop=stop, stack=stack, on_ready=stop.set)

    asyncio.run(run())


def into_the_store(folder: Path, place: Path) -> None:
    store = Store(place / "store")
    try:
        pull(store, source_for(str(folder)), told=lambda _: None)
    except MedportError:
        assert store.list() == []
        raise


WAYS = {
    each.__name__: each
    for each in (checked_at_once, weights_checked_at_loading, in_process, as_container, into_the_store)
}


@pytest.mark.parametrize("way", WAYS)
def test_the_snapshot_that_the_attacks_start_from_is_loaded(folder: Path, tmp_path: Path, way: str) -> None:
    remake(folder)

    WAYS[way](folder, tmp_path)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("way", WAYS)
def test_bad_snapshot_is_refused_by_name_on_every_way_in(
    folder: Path, tmp_path: Path, way: str, attack: str
) -> None:
    said = spoil(attack, folder)

    with pytest.raises(VerificationError, match=said) as fault:
        WAYS[way](folder, tmp_path)

    assert fault.value.field
    assert fault.value.remedy
    assert len(str(fault.value)) < 800
    assert str(fault.value).isprintable()


@pytest.mark.parametrize(
    ("attack", "exit_code"),
    [("bit of the weights", 1), ("pickle named .safetensors", 1), ("_attn_implementation_internal", 1)],
)
@pytest.mark.parametrize("program", ["serve", "container"])
def test_program_that_is_given_a_bad_snapshot_ends_and_serves_nothing(
    folder: Path, attack: str, exit_code: int, program: str
) -> None:
    said = spoil(attack, folder)
    if program == "serve":
        command = ["medport_local.cli", "serve", "--port", "0", "--snapshot", f"medsiglip={folder}"]
        environment = dict(os.environ)
    else:
        command = ["medport_local.container", "--port=0"]
        environment = {**os.environ, "AIP_STORAGE_URI": str(folder), "AIP_HTTP_PORT": str(free_port())}
        command.pop()

    done = forked.run(*command, env=environment, timeout=120)

    assert done.returncode == exit_code
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# Bytes that change after they came into the store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def stored(store: Store) -> Stored:
    return bring(store, weights_dir("medsiglip"))


def opened(store: Store, stored: Stored) -> None:
    store.open(stored)


def served(store: Store, stored: Stored) -> None:
    inprocess.start({"medsiglip": stored.reference}, store=store.root).close()


def contained(store: Store, stored: Stored) -> None:
    with ExitStack() as stack:
        settings = ContainerSettings(models=(stored.reference,), store=store.root)
        snapshot, _ = container._prepared(settings, stack)
        load_siglip(snapshot, device="cpu")


def locked(store: Store, stored: Stored) -> None:
    locked_model(store.open(stored), stored)


def copied(store: Store, stored: Stored) -> None:
    pull(Store(store.root.parent / "other"), source_for(str(stored.directory)), told=lambda _: None)


OUT_OF_THE_STORE = {each.__name__: each for each in (opened, served, contained, locked, copied)}


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "spiece.model"])
@pytest.mark.parametrize("way", OUT_OF_THE_STORE)
def test_one_bit_that_flips_in_the_store_is_refused_whoever_loads_it(
    store: Store, stored: Stored, way: str, name: str
) -> None:
    OUT_OF_THE_STORE[way](store, stored)
    shutil.rmtree(store.root.parent / "other", ignore_errors=True)
    flip(stored.directory / name, 60 if name == "config.json" else -1)

    with pytest.raises(VerificationError, match=rf"{name.replace('.', '[.]')}.*(hash|sha256)"):
        OUT_OF_THE_STORE[way](store, stored)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "spiece.model"])
def test_one_bit_that_flips_in_the_store_is_found_by_verifying(store: Store, stored: Stored, name: str) -> None:
    assert store.verify(stored) == []
    flip(stored.directory / name, 60 if name == "config.json" else -1)

    assert store.verify(stored) != []


def test_other_manifest_than_the_stored_one_is_refused(store: Store, stored: Stored) -> None:
    path = stored.directory / "manifest.json"
    stored.directory.chmod(0o755)
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repo_id": "medport/another"}))

    wanted = Wanted(snapshots={"medsiglip": f"sha256:{stored.snapshot_sha256}"}, store=store.root)
    with pytest.raises(VerificationError, match="not the one that was stored"), select(wanted):
        pytest.fail("it was selected")


# Swapped between the check and the load


def by_another_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (path.parent / "new").write_bytes(data)
    os.replace(path.parent / "new", path)


def in_place(path: Path) -> None:
    flip(path)


def by_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def by_nothing(path: Path) -> None:
    path.unlink()


SWAPS = {each.__name__: each for each in (by_another_file, in_place, by_a_link, by_a_pipe, by_nothing)}


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "spiece.model"])
@pytest.mark.parametrize("way", ["in_process", "as_container"])
def test_file_that_is_swapped_between_check_and_load_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, name: str, swap: str
) -> None:
    from medport_local import opening

    load = opening.open_model

    def swapped_before(snapshot: Snapshot, *arguments: Any, **options: Any) -> Any:
        SWAPS[swap](folder / name)
        return load(snapshot, *arguments, **options)

    monkeypatch.setattr(opening, "open_model", swapped_before)

    with pytest.raises(VerificationError, match=name):
        WAYS[way](folder, tmp_path)


# Objects in requests


@pytest.fixture(scope="module")
def server() -> Iterator[inprocess.Server]:
    with inprocess.start({"medgemma": weights_dir("medgemma")}) as running:
        yield running


class Loaded:
    """Makes a directory when somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


def asked(server: inprocess.Server, path: str, **request: Any) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket_path)), timeout=60) as client:
        return client.post(server.base_url + path, **request)


@pytest.mark.parametrize(
    "content_type", ["application/vnd.bentoml+pickle", "application/x-pickle", "application/json"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/projects/-/locations/-/endpoints/medgemma:predict"])
def test_pickle_as_a_body_is_refused_and_not_loaded(
    server: inprocess.Server, tmp_path: Path, content_type: str, path: str
) -> None:
    body = pickle.dumps(Loaded(tmp_path / "mark"))

    answer = asked(server, path, content=body, headers={"Content-Type": content_type})

    assert answer.status_code == 400
    assert not (tmp_path / "mark").exists()
    pickle.loads(body)
    assert (tmp_path / "mark").exists()


def test_tensor_of_a_caller_is_never_loaded(server: inprocess.Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"prompt": Loaded(tmp_path / "mark")}, buffer)
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}

    plain = asked(server, "/v1/chat/completions", json=chat)
    given = asked(
        server,
        "/v1/chat/completions",
        json={**chat, "prompt_embeds": base64.b64encode(buffer.getvalue()).decode()},
    )

    assert plain.status_code == 200
    assert not (tmp_path / "mark").exists()
    # Refused, or an answer to the words alone.
    assert given.status_code == 400 or given.json()["choices"] == plain.json()["choices"]
