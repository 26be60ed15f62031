"""The wheels of what is installed: by real pip, from a directory that is the only place where it may look."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from support.site_parts import build_wheel

from medport.errors import ConfigError, ServerError, VerificationError
from medport_local.bundle import collect
from medport_local.bundle.wheels import read_wheel

BACKEND = """
import zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "app-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as file:
        file.writestr("app.py", "built = True\\n")
        file.writestr("app-1.0.dist-info/METADATA", open("METADATA").read())
        file.writestr("app-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        file.writestr("app-1.0.dist-info/RECORD", "app.py,,\\n")
    return name
"""


class Place:
    """An index of wheels, and an environment that some of them are installed in."""

    def __init__(self, root: Path) -> None:
        self.index, self.site, self.out = root / "index", root / "site", root / "out"
        for folder in (self.index, self.site, self.out):
            folder.mkdir()
        self.told: list[str] = []

    def install(self, wheel: Path) -> Path:
        """Unpack a wheel; its ``dist-info``."""
        with zipfile.ZipFile(wheel) as file:
            file.extractall(self.site)
            about = next(name for name in file.namelist() if name.endswith("/METADATA"))
        return self.site / Path(about).parent

    @property
    def installed(self) -> Mapping[str, Distribution]:
        return collect.installed_here([str(self.site)])

    def collect(self) -> list[str]:
        found = collect.collect(self.out, told=self.told.append, root="app", installed=self.installed)
        return [f"{each.name} {each.version}" for each in found]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    for name in [each for each in os.environ if each.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.index))
    return made


def _add(place: Place, name: str, version: str = "1.0", **more: object) -> Path:
    """Into the index and into the environment."""
    wheel = build_wheel(place.index, name, version, **more)  # type: ignore[arg-type]
    place.install(wheel)
    return wheel


def test_wheels_are_those_of_what_is_installed_and_needed_in_the_installed_versions(place: Place) -> None:
    _add(
        place,
        "app",
        requires=["core>=1", 'extra-part; extra == "more"', 'other; extra == "rest"'],
        extras=["more", "rest"],
    )
    _add(place, "core", "1.5", requires=["leaf[fast]"])
    _add(place, "leaf", requires=['quick; extra == "fast"', 'slow; extra == "slow"'], extras=["fast", "slow"])
    _add(place, "quick")
    _add(place, "extra-part")
    _add(place, "bystander")
    build_wheel(place.index, "core", "1.9")  # newer, and not what runs here

    found = place.collect()

    assert found == ["app 1.0", "core 1.5", "extra-part 1.0", "leaf 1.0", "quick 1.0"]
    assert any("with more" in line and "rest" not in line for line in place.told)


def test_wheel_with_other_files_than_those_installed_is_refused(place: Place) -> None:
    _add(place, "app", requires=["core"])
    _add(place, "core")
    build_wheel(place.index, "core", files={"core.py": b"import os\n"})

    with pytest.raises(VerificationError, match=r"core-1\.0.* is not the wheel that is installed here"):
        place.collect()


def test_distribution_without_a_wheel_is_named_with_a_remedy(place: Place) -> None:
    _add(place, "app", requires=["core"])
    _add(place, "core").unlink()

    with pytest.raises(ConfigError, match=r"no wheel of core==1\.0") as caught:
        place.collect()

    assert "pip wheel" in str(caught.value.remedy)


def test_source_tree_that_is_installed_editable_is_built(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    metadata = "Metadata-Version: 2.4\nName: app\nVersion: 1.0\nRequires-Dist: core\n"
    (tree / "METADATA").write_text(metadata)
    (tree / "backend.py").write_text(BACKEND)
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "app"\nversion = "1.0"\n'
    )
    _add(place, "core")
    about = place.install(build_wheel(tmp_path, "app", requires=["core"]))
    (about / "direct_url.json").write_text(json.dumps({"url": tree.as_uri(), "dir_info": {"editable": True}}))

    found = place.collect()

    assert found == ["app 1.0", "core 1.0"]
    with zipfile.ZipFile(place.out / "app-1.0-py3-none-any.whl") as file:
        assert file.read("app.py") == b"built = True\n"


def test_index_address_with_a_password_is_in_no_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(place, "app", requires=["core"])
    _add(place, "core")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place.site))
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")

    with pytest.raises((ConfigError, ServerError)) as caught:
        place.collect()

    assert "secret" not in repr(caught.value) + str(caught.value) + str(caught.value.remedy)
    assert "secret" not in "".join(place.told)


def test_wheels_that_do_not_suffice_are_refused_whatever_pips_configuration_would_find(place: Place) -> None:
    wheel = _add(place, "app", requires=["core"])
    _add(place, "core")
    alone = place.out / wheel.name
    alone.write_bytes(wheel.read_bytes())

    with pytest.raises(VerificationError, match="do not suffice to install app: core"):
        collect.check_sufficient(place.out, read_wheel(alone), [])


def test_requirement_that_is_not_installed_is_said_before_anything_is_fetched(place: Place) -> None:
    wheel = _add(place, "app", requires=["core>=2"])
    _add(place, "core", "1.0")

    with pytest.raises(ConfigError, match="app needs core>=2, which is not installed"):
        collect.closure(read_wheel(wheel), [], place.installed)


def test_extras_for_developers_are_never_taken_along(place: Place) -> None:
    wheel = _add(place, "app", requires=['core; extra == "dev"', 'core; extra == "use"'], extras=["dev", "use"])
    _add(place, "core")

    assert collect.whole_extras(read_wheel(wheel), place.installed) == {"use"}


def test_circle_of_requirements_ends(place: Place) -> None:
    wheel = _add(place, "app", requires=["core"])
    _add(place, "core", requires=["app", "leaf"])
    _add(place, "leaf", requires=["core"])

    found = collect.closure(read_wheel(wheel), [], place.installed)

    assert [each.metadata["Name"] for each in found] == ["core", "leaf"]


@pytest.mark.parametrize("origin", [{"vcs_info": {"vcs": "git"}}, {"dir_info": {}}])
def test_distribution_from_a_source_tree_of_its_own_is_refused(place: Place, origin: dict[str, object]) -> None:
    _add(place, "app", requires=["core"])
    about = place.install(build_wheel(place.index, "core"))
    (about / "direct_url.json").write_text(json.dumps({"url": "https://example.invalid/x", **origin}))

    with pytest.raises(ConfigError, match="core was installed from a source tree"):
        place.collect()


def test_root_that_is_not_installed_is_said_so(place: Place) -> None:
    with pytest.raises(ConfigError, match="app is not installed here"):
        place.collect()


def test_root_that_was_changed_since_it_was_installed_is_refused(place: Place) -> None:
    _add(place, "app")
    build_wheel(place.index, "app", files={"app.py": b"other = True\n"})

    with pytest.raises(VerificationError, match=r"app-1\.0.* is not the wheel that is installed here"):
        place.collect()
