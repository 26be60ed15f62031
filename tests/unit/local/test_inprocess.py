"""The server inside this process."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from medport.errors import ConfigError, VerificationError
from medport_local import inprocess


def get(server: inprocess.Server, path: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.socket_path))) as client:
        return client.get(server.base_url + path)


def test_it_answers_on_a_private_socket_and_cleans_up(siglip_folder: Path) -> None:
    before = set(threading.enumerate())
    server = inprocess.start({"medsiglip": siglip_folder})
    assert server.socket_path is not None
    directory = server.socket_path.parent

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert get(server, "/health").text == "ok"
    assert len(get(server, "/v1/projects/-/locations/-/endpoints").json()["endpoints"]) == 1
    server.close()
    server.close()

    assert not directory.exists()
    # Others of this process may be serving too.
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("medport")]


def test_several_live_side_by_side(siglip_folder: Path) -> None:
    with (
        inprocess.start({"medsiglip": siglip_folder}) as one,
        inprocess.start({"medsiglip": siglip_folder}) as two,
    ):
        assert one.socket_path != two.socket_path
        one.close()
        assert get(two, "/health").text == "ok"


def test_without_unix_sockets_a_key_guards_a_loopback_port(
    siglip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inprocess, "_has_unix_sockets", lambda: False)
    with inprocess.start({"medsiglip": siglip_folder}) as server:
        url = f"{server.base_url}/v1/projects/-/locations/-/endpoints"

        assert server.socket_path is None
        assert server.api_key is not None
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {server.api_key}"}).status_code == 200


def test_options_reach_the_engine_and_nothing_is_kept_by_default(gemma_folder: Path) -> None:
    with inprocess.start({"medgemma": gemma_folder}, device="cpu", dtype="bfloat16", reuse_bytes=2**20) as server:
        assert server.app is not None
        told = server.app.state.standing["medgemma"]
        assert (told.device, told.dtype, told.reuse_bytes) == ("cpu", "bfloat16", 2**20)
    with inprocess.start({"medgemma": gemma_folder}, device="cpu") as server:
        assert server.app is not None
        assert server.app.state.standing["medgemma"].reuse_bytes == 0


def test_device_that_is_not_there_is_raised_as_what_it_is(gemma_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no device"):
        inprocess.start({"medgemma": gemma_folder}, device="abacus")


def test_missing_directory_is_raised_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model directory"):
        inprocess.start({"medgemma": tmp_path / "nowhere"})


def test_wrong_family_and_wrong_name_are_settings_at_fault(siglip_folder: Path) -> None:
    with pytest.raises(ConfigError, match="is a medsiglip"):
        inprocess.start({"medgemma": siglip_folder})
    with pytest.raises(ConfigError, match="not a model family"):
        inprocess.start({"gpt": siglip_folder})


def test_spoiled_snapshot_is_raised_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_text("")
    threads = threading.active_count()

    with pytest.raises(VerificationError):
        inprocess.start({"medgemma": tmp_path})
    assert threading.active_count() == threads


def test_program_that_forgets_to_close_exits_quietly_and_cleans_up(siglip_folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys, signal; from medport_local import inprocess\n"
        "before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)\n"
        "server = inprocess.start({'medsiglip': sys.argv[1]})\n"
        "assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))\n"
        "open(sys.argv[2], 'w').write(str(server.socket_path.parent))\n"
    )
    note = tmp_path / "directory"
    done = subprocess.run(
        [sys.executable, "-c", script, str(siglip_folder), str(note)], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not Path(note.read_text()).exists()
