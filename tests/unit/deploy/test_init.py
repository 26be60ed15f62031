"""The first ``medport.yaml``: it parses, says every key of the form, and accepts nothing in anybody's name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from medport.errors import AlreadyExists, ConfigError
from medport_deploy.first_run import init
from medport_deploy.first_run.init import Answers, Choice
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec

IMAGE = "europe-docker.pkg.dev/example/medport/serving:2026-11"
GEMMA, SIGLIP = "google/medgemma-4b-it", "google/medsiglip-448"
VERTEX = Answers(target="vertex", models=(GEMMA,), image=IMAGE, project="radiology", location="europe-west4")
LOCAL = Answers(target="local", models=(GEMMA,), image=IMAGE, url="https://127.0.0.1:8443", api_key_env="KEY")
OPTION = re.compile(r"(?P<indent> *)#(?P<key>[a-z]\w*):(?P<rest>.*)")
KEY = re.compile(r"(?P<indent> *)#?(?P<key>[a-z][\w-]*):(?: .*)?")
TOGETHER = {"machine.accelerator": "machine.count", "machine.count": "machine.accelerator"}
"""Options that mean something only with another."""


def paths_of_form(kind: Any, at: str = "") -> Iterator[str]:
    """The paths of all keys that the form has; ``*`` for a name."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is dict and isinstance(get_args(kind)[1], type):
        yield from paths_of_form(get_args(kind)[1], f"{at}.*")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            here = f"{at}.{name}" if at else name
            yield here
            yield from paths_of_form(field.annotation, here)


def lines_by_path(text: str, model: str) -> dict[str, int]:
    """The number of the line of each key, commented out or not."""
    found: dict[str, int] = {}
    steps: list[str] = []
    for number, line in enumerate(text.splitlines()):
        if (said := KEY.fullmatch(line)) is not None:
            steps = [*steps[: len(said["indent"]) // 2], said["key"]]
            found[".".join("*" if step == model else step for step in steps)] = number
    return found


def with_option(text: str, path: str, model: str) -> str:
    """The text with one option set, and the mappings around it."""
    lines, places = text.splitlines(), lines_by_path(text, model)
    partners = [path.removesuffix(end) + other for end, other in TOGETHER.items() if path.endswith(end)]
    for each in (path, *partners):
        steps = each.split(".")
        for depth in range(1, len(steps) + 1):
            place = places.get(".".join(steps[:depth]))
            if place is not None and (option := OPTION.fullmatch(lines[place])):
                lines[place] = f"{option['indent']}{option['key']}:{option['rest']}"
    return "\n".join(lines)


def options(answers: Answers) -> list[str]:
    """The paths of the values that are commented out."""
    text = init.render(answers)
    lines = text.splitlines()
    return [
        path
        for path, number in lines_by_path(text, GEMMA.partition("/")[2]).items()
        if (option := OPTION.fullmatch(lines[number])) and option["rest"]
    ]


def default_of(path: str) -> Any:
    """What the form takes where a key is not given; ``None`` where it leaves that open."""
    kind: Any = Spec
    for step in path.split("."):
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if step == "*":
            kind = get_args(kind)[1]
            continue
        field = kind.model_fields[step]
        kind = field.annotation
    return None if field.is_required() else field.get_default(call_default_factory=True)


@pytest.mark.parametrize("answers", [VERTEX, LOCAL], ids=["vertex", "local"])
def test_every_key_of_the_form_has_a_line_and_an_explanation(answers: Answers) -> None:
    text = init.render(answers)
    lines, places = text.splitlines(), lines_by_path(text, "medgemma-4b-it")
    named = set(re.findall(r"# (\w+) is for kind (?:vertex|local) alone\. \w", text))

    missing = [
        path
        for path in paths_of_form(Spec)
        if path not in places and not (path.startswith("target.auth.") and path.rpartition(".")[2] in named)
    ]
    unexplained = [
        path
        for path, number in places.items()
        if path != "models.*" and not re.match(r" *# \S", lines[number - 1])
    ]

    assert missing == []
    assert unexplained == []
    assert "models.*.endpoint.inference_timeout_s" in places


@pytest.mark.parametrize("path", options(VERTEX))
def test_an_option_of_vertex_can_be_set_by_taking_its_sign_away(path: str) -> None:
    text = init.render(VERTEX)
    if path == "terraform.root":
        text = with_option(text, "models.*.endpoint.id", "medgemma-4b-it")
    before = specs.parse(text.encode())

    after = specs.parse(with_option(text, path, "medgemma-4b-it").encode())

    # A default that is written out changes nothing; an example does.
    assert (after == before) == (default_of(path) is not None)


@pytest.mark.parametrize("path", options(LOCAL))
def test_an_option_of_a_local_target_can_be_set_by_taking_its_sign_away(path: str) -> None:
    text = init.render(LOCAL)
    if path == "terraform.root":
        text = with_option(text, "models.*.endpoint.id", "medgemma-4b-it")
    before = specs.parse(text.encode())

    after = specs.parse(with_option(text, path, "medgemma-4b-it").encode())

    paired = path.endswith(("machine.accelerator", "machine.count"))
    assert (after == before) == (default_of(path) is not None and not paired)


@pytest.mark.parametrize("model", init.KNOWN)
def test_every_model_to_choose_from_has_a_machine_that_holds_it_on_vertex(model: str) -> None:
    answers = Answers(target="vertex", models=(model,), image=IMAGE, project="radiology", location="us-central1")

    spec = specs.parse(init.render(answers).encode())

    (chosen,) = spec.models.values()
    assert chosen.model == model
    assert chosen.machine.accelerator is not None
    assert chosen.machine.count == (2 if chosen.machine.type == "g2-standard-24" else 1)


T4 = Choice("n1-standard-8", "NVIDIA_TESLA_T4", 2)


@pytest.mark.parametrize(
    ("kind", "models", "machine"),
    [
        ("vertex", (GEMMA,), None),
        ("vertex", (GEMMA, SIGLIP, GEMMA), None),
        ("vertex", (GEMMA, "other/medgemma-4b-it"), T4),
        ("local", (GEMMA,), None),
        ("local", (GEMMA, SIGLIP), None),
        ("local", (GEMMA, "other/medgemma-4b-it"), T4),
        ("local", (GEMMA, "27/27b_a-name-that-is-longer-than-thirty"), None),
    ],
)
@pytest.mark.parametrize("root", [None, "terraform/roots/cloud"])
def test_every_combination_of_answers_is_a_specification_of_what_was_answered(
    kind: Any, models: tuple[str, ...], root: str | None, machine: Choice | None
) -> None:
    answers = Answers(
        target=kind, models=models, image=IMAGE, name="chest", project="123456", location="europe-west4",
        terraform_root=root, machine=machine,
    )  # fmt: skip

    spec = specs.parse(init.render(answers).encode())

    assert (spec.name, spec.target.kind, spec.target.project) == ("chest", kind, "123456")
    assert [each.model for each in spec.models.values()] == list(dict.fromkeys(models))
    assert {each.image for each in spec.models.values()} == {IMAGE}
    assert spec.terraform.root == root
    assert (root is not None) == all(spec.endpoint_id(name).isdecimal() for name in spec.models)
    if machine is not None:
        assert {(each.machine.type, each.machine.count) for each in spec.models.values()} == {("n1-standard-8", 2)}


def test_no_terms_are_accepted_and_those_to_read_are_named_with_their_address() -> None:
    text = init.render(VERTEX)

    assert specs.parse(text.encode()).accept_terms == []
    assert re.search(r"# To read before you write hai-def: .*https://developers\.google\.com/\S+", text)


def test_a_model_without_known_terms_names_none() -> None:
    text = init.render(Answers(target="local", models=("site/own-model",), image=IMAGE))

    assert "To read before" not in text


def test_a_model_for_which_no_machine_is_known_needs_one_that_is_given() -> None:
    answers = Answers(target="vertex", models=("site/own-model",), image=IMAGE, project="radiology")

    with pytest.raises(ConfigError, match="no machine is known for site/own-model") as caught:
        init.render(answers)

    assert caught.value.field == "--machine"


def test_an_answer_that_the_form_refuses_is_refused_before_anything_is_written() -> None:
    answers = Answers(target="vertex", models=(GEMMA,), image=IMAGE, project="radiology", location="mars-west1")

    with pytest.raises(ConfigError, match="no region of Vertex AI"):
        init.render(answers)


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "medport.yaml"
    file.write_text("mine\n")

    with pytest.raises(AlreadyExists, match=r"medport\.yaml is there already"):
        init.write(file, "new\n")

    assert file.read_text() == "mine\n"
    assert [each.name for each in tmp_path.iterdir()] == ["medport.yaml"]


def test_a_file_that_is_there_is_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "medport.yaml"
    file.write_text("mine\n")

    init.write(file, "new\n", force=True)

    assert file.read_text() == "new\n"
    assert [each.name for each in tmp_path.iterdir()] == ["medport.yaml"]


def test_a_place_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"medport\.yaml cannot be written \(No such file"):
        init.write(tmp_path / "absent" / "medport.yaml", "new\n")
