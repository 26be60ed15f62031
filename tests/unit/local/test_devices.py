"""Devices by name, and what they have. Cards that this machine lacks are played."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medport.errors import ConfigError
from medport_local.engine import devices

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux of 16 GiB, 10 of them free, in no control group."""
    monkeypatch.setattr(devices, "_SYSTEM", tmp_path)
    write(tmp_path / "proc/meminfo", f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {10 * 2**20} kB\n")
    write(tmp_path / "proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU @ 2 GHz\nflags : a\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, limit: str, used: int, read_files: int) -> None:
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", f"anon 1\ninactive_file {read_files}\n")


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_cards")
def test_without_a_name_and_a_card_it_is_the_cpu() -> None:
    assert devices.choose(None) == torch.device("cpu")


@pytest.mark.usefixtures("two_cards")
def test_without_a_name_it_is_the_first_card() -> None:
    assert devices.choose(None) == torch.device("cuda", 0)


@pytest.mark.usefixtures("no_cards")
def test_apple_gpu_comes_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    assert devices.choose(None) == torch.device("mps")


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize(("name", "device"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_device_is_the_one_that_was_named(name: str, device: str) -> None:
    assert devices.choose(name) == torch.device(device)


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize("name", ["cuda:2", "cuda:999"])
def test_card_beyond_those_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="2 there") as fault:
        devices.choose(name)

    assert fault.value.field == "device"


@pytest.mark.usefixtures("no_cards")
@pytest.mark.parametrize(
    "name", ["cuda", "cuda:0", "mps", "", "meta", "CPU", "cuda:", "cuda:-1", "cuda:0\n", "xpu"]
)
def test_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as fault:
        devices.choose(name)

    assert fault.value.field == "device"
    assert fault.value.remedy is not None


def test_real_cpu_has_memory_and_a_name() -> None:
    facts = devices.describe(torch.device("cpu"))

    assert 0 < facts.free_bytes <= facts.total_bytes
    assert facts.name


def test_cpu_memory_is_what_the_system_tells(system: Path) -> None:
    facts = devices.describe(torch.device("cpu"))

    assert facts == devices.DeviceFacts("Some CPU @ 2 GHz", 16 * GIB, 10 * GIB)


def test_limit_of_the_control_group_counts_and_its_read_files_do_not(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/pods/one\n")
    group(system / "sys/fs/cgroup/pods/one", str(4 * GIB), used=3 * GIB, read_files=GIB)

    facts = devices.describe(torch.device("cpu"))

    assert (facts.total_bytes, facts.free_bytes) == (4 * GIB, 2 * GIB)


def test_limit_of_an_outer_group_counts(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/pods/one\n")
    group(system / "sys/fs/cgroup/pods/one", "max", used=0, read_files=0)
    group(system / "sys/fs/cgroup/pods", str(8 * GIB), used=GIB, read_files=0)

    assert devices.describe(torch.device("cpu")).free_bytes == 7 * GIB


def test_limit_is_found_where_a_container_shows_its_own_group_as_the_root(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/../../some/path/outside\n")
    group(system / "sys/fs/cgroup", str(2 * GIB), used=0, read_files=0)

    assert devices.describe(torch.device("cpu")).total_bytes == 2 * GIB


def test_limit_in_the_first_form_of_control_groups_counts(system: Path) -> None:
    write(system / "proc/self/cgroup", "4:memory:/pods\n3:cpu,cpuacct:/\n0::/\n")
    folder = system / "sys/fs/cgroup/memory/pods"
    write(folder / "memory.limit_in_bytes", str(3 * GIB))
    write(folder / "memory.usage_in_bytes", str(2 * GIB))
    write(folder / "memory.stat", f"inactive_file 0\ntotal_inactive_file {GIB}\n")

    assert devices.describe(torch.device("cpu")).free_bytes == 2 * GIB


def test_group_that_uses_more_than_its_limit_has_nothing_free(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/one\n")
    group(system / "sys/fs/cgroup/one", str(GIB), used=2 * GIB, read_files=0)

    assert devices.describe(torch.device("cpu")).free_bytes == 0


@pytest.mark.usefixtures("two_cards")
def test_card_tells_its_own_memory() -> None:
    facts = devices.describe(torch.device("cuda", 1))

    assert facts == devices.DeviceFacts("Card 1", 80 * GIB, 3 * GIB)
