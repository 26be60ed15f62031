"""``medport.yaml``: what is read, and what is refused with which line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medport.errors import ConfigError, MedportError, PolicyError
from medport.wire.vertex import REGIONS
from medport_deploy.spec import machines as spec_machines
from medport_deploy.spec import reading as specs
from medport_deploy.spec import yaml as spec_yaml

PLAIN = """\
version: 1
name: radiology
target:
  kind: vertex
  project: example-project
  location: europe-west4
models:
  medgemma:
    model: google/medgemma-4b-it
    image: europe-docker.pkg.dev/example/medport/serving:1.0
    endpoint: {id: 1234567890}
    machine: {type: g2-standard-24, accelerator: NVIDIA_L4, count: 2}
    replicas: {min: 2}
accept_terms: [hai-def]
labels: {team: radiology}
"""


def changed(old: str, new: str) -> bytes:
    assert PLAIN.count(old) == 1
    return PLAIN.replace(old, new).encode()


def refused(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        specs.parse(data)
    return str(caught.value)


def outcome(read: Callable[[], object]) -> str:
    """``read``, or how it was refused."""
    try:
        read()
    except ConfigError as fault:
        return str(fault)
    return "read"


def test_a_plain_specification_is_read_with_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "medport.yaml"
    file.write_text(PLAIN)

    spec = specs.load(file)
    model = spec.models["medgemma"]

    assert (spec.name, spec.target.location, model.revision) == ("radiology", "europe-west4", "main")
    assert (model.replicas.min, model.replicas.max, model.endpoint.dedicated) == (2, 2, True)
    assert (spec.endpoint_id("medgemma"), spec.display_name("medgemma")) == ("1234567890", "radiology medgemma")
    assert (spec.rollout.steps, spec.policy.allow_plain_images) == ([5, 25, 100], False)
    assert spec.models["medgemma"].endpoint.inference_timeout_s == 600


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"medport\.yaml cannot be read .*medport deploy init"):
        specs.load(tmp_path / "medport.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("replicas:", "replica:", "medport.yaml:13: models.medgemma.replica is not known; did you mean replicas?"),
        ("count: 2", "cuont: 2", "models.medgemma.machine.cuont is not known; did you mean count?"),
        ("labels:", "lables:", "medport.yaml:15: lables is not known; did you mean labels?"),
        ("project: ", "projct: ", "medport.yaml:5: target.projct is not known; did you mean project?"),
        ("labels:", "rollout: {gates: {p95: 3}}\nlabels:", "rollout.gates.p95 is not known; did you mean p95_ms?"),
        ("labels:", "zzzz: 1\nlabels:", "known are version, name, target"),
    ],
)
def test_an_unknown_key_is_refused_with_line_and_nearest_name(old: str, new: str, said: str) -> None:
    assert said in refused(changed(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", "medport.yaml:1: version"),
        ("version: 1", "version: true", "version must be a whole number"),
        ("name: radiology", "name: Radiology", "medport.yaml:2: name is not up to 30"),
        ("europe-west4", "europe-west44", "is no region of Vertex AI"),
        ("location: europe-west4", "location: global", "is no region of Vertex AI"),
        ("example-project", "Example", "target.project is neither a project's id"),
        ("kind: vertex", "kind: kubernetes", "target.kind should be 'vertex' or 'local'"),
        ("kind: vertex", "kind: local", "needs a url"),
        ("kind: vertex", "kind: vertex\n  url: http://10.0.0.7", "plain http to another machine"),
        ("kind: vertex", "kind: vertex\n  url: https://u:p@example.org", "credentials go under auth"),
        ("kind: vertex", "kind: vertex\n  auth: {api_key_env: KEY}", "takes Google's credentials for kind vertex"),
        ("kind: vertex", "kind: vertex\n  url: https://example.org", "has a url outside googleapis.com"),
        ("kind: vertex", "kind: vertex\n  url: https://a.googleapis.com/v1", "ends with a version of the API"),
        ("kind: vertex", "kind: vertex\n  auth: {api_key: k}", "auth.api_key is not known"),
        ("google/medgemma-4b-it", "medgemma-4b-it", "models.medgemma.model is not OWNER/NAME"),
        ("europe-docker.pkg.dev/example/medport/serving:1.0", "serving:1.0", "the registry's host must be named"),
        ("serving:1.0", "serving@sha256:abc", "models.medgemma.image is not HOST/PATH"),
        ("id: 1234567890", "id: 01234", "endpoint.id is neither"),
        ("id: 1234567890", "id: 12345678901", "endpoint.id is neither"),
        ("id: 1234567890", "id: My_Endpoint", "endpoint.id is neither"),
        ("{id: 1234567890}", "{inference_timeout_s: 3601}", "less than or equal to 3600"),
        ("count: 2", "count: 1", "g2-standard-24 comes with 2 NVIDIA_L4"),
        ("count: 2", "count: 2.0", "must be a whole number"),
        (", accelerator: NVIDIA_L4, count: 2", "", "g2-standard-24 comes with 2 NVIDIA_L4"),
        ("g2-standard-24", "g2-standard-x24", "did you mean g2-standard-24?"),
        ("NVIDIA_L4", "NVIDIA_TESLA_T4", "comes with 2 NVIDIA_L4"),
        ("{min: 2}", "{min: 0}", "replicas.min should be greater than or equal to 1"),
        ("{min: 2}", "{min: 2, max: 1}", "has max 1, less than min 2"),
        ("{min: 2}", "{min: 2, required: 3}", "has required 3, more than min 2"),
        ("{team: radiology}", "{Team: radiology}", "is no label key"),
        ("{team: radiology}", "{team: Radiology}", "the value of team"),
        ("{team: radiology}", f"{{team: {'a' * 64}}}", "longer than 63"),
        ("{team: radiology}", "{team: 7}", "labels.team must be a text; write it in quotes"),
        ("{team: radiology}", "{medport-lock: x}", "begins with goog- or medport-"),
        ("labels:", "rollout: {steps: [5, 5, 100]}\nlabels:", "rollout.steps [5, 5, 100] does not rise"),
        ("labels:", "rollout: {steps: [5, 25]}\nlabels:", "does not end at 100"),
        ("labels:", "rollout: {steps: []}\nlabels:", "rollout.steps"),
        ("labels:", "rollout: {steps: [0, 100]}\nlabels:", "rollout.steps[0]"),
        (
            "labels:",
            "rollout: {strategy: recreate, steps: [100]}\nlabels:",
            "mean nothing for strategy recreate",
        ),
        ("labels:", "rollout: {gates: {error_ratio: '0.5'}}\nlabels:", "error_ratio must be a number"),
        ("labels:", "rollout: {gates: {error_ratio: .nan}}\nlabels:", "error_ratio must be a number"),
        ("labels:", "network: {allowed_projects: [other-project]}\nlabels:", "unless private is true"),
        ("labels:", "network: {private: true}\nlabels:", "endpoint.dedicated must be false"),
        ("labels:", "network: {private: yes}\nlabels:", "network.private must be true or false"),
        ("labels:", "keys: {kms_key_name: key}\nlabels:", "keys.kms_key_name is not projects/"),
        (
            "labels:",
            "keys: {kms_key_name: projects/p/locations/us/keyRings/r/cryptoKeys/k}\nlabels:",
            "lies in us, and the endpoints in europe-west4",
        ),
        ("{id: 1234567890}", "{}\n    env: {HF_TOKEN: x}", "HF_TOKEN looks like a secret"),
        ("{id: 1234567890}", "{}\n    env: {MEDPORT_REVISION: x}", "written from the lock"),
        ("{id: 1234567890}", "{}\n    env: {AIP_HTTP_PORT: '1'}", "by Vertex itself"),
        ("{id: 1234567890}", "{}\n    args: [--revision=main]", "--revision is written from the lock"),
        ("{id: 1234567890}", "{}\n    args: [--trust-remote-code]", "lets a model run code"),
        ("{id: 1234567890}", "{}\n    args: [--token=x]", "--token looks like a secret"),
        ("{id: 1234567890}", "{}\n    args: [--registry-password, x]", "--registry-password looks like a secret"),
        ("{id: 1234567890}", "{}\n    args: [-e, ACCESS_KEY=x]", "ACCESS_KEY looks like a secret"),
        ("{id: 1234567890}", "{}\n    service_account: me@example.org", "service_account is not NAME@PROJECT"),
        ("{id: 1234567890}", "{}\n    container: {predict_route: /health}", "has one path for"),
        ("models:", "models: {}\nmodel:", "models"),
    ],
)
def test_what_a_server_would_refuse_late_is_refused_here(old: str, new: str, said: str) -> None:
    assert said in refused(changed(old, new))


def test_under_terraform_an_endpoint_needs_an_id_in_digits() -> None:
    data = changed("    endpoint: {id: 1234567890}\n", "") + b"terraform: {root: infra}\n"

    assert "models.medgemma.endpoint.id must be given, in digits" in refused(data)


def test_two_models_on_one_endpoint_are_refused() -> None:
    second = PLAIN[PLAIN.index("  medgemma:") : PLAIN.index("accept_terms")].replace("  medgemma:", "  other:")

    assert "is the endpoint 1234567890 of medgemma too" in refused(
        changed("accept_terms", f"{second}accept_terms")
    )


def test_every_fault_is_named_in_the_order_of_lines() -> None:
    said = refused(
        changed("count: 2", "count: x").replace(b"version: 1", b"version: 7").replace(b"team:", b"Team:")
    )

    assert [line.split()[0] for line in said.splitlines()] == [
        "medport.yaml:1:",
        "medport.yaml:12:",
        "medport.yaml:15:",
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a: &x [1]\nb: 2\n", "medport.yaml:1: uses an anchor"),
        (b"a: [1]\nb: *x\n", "medport.yaml:2: uses an anchor or an alias"),
        (b"a: 1\nb: !!python/name:os.system x\n", "medport.yaml:2: uses a tag"),
        (b"a: 1\nb: 2\na: 3\n", "medport.yaml:3: says a twice"),
        (b"a:\n  b: 1\n  b: 1\n", "medport.yaml:3: says b twice"),
        (b"a: {<<: {b: 1}}\n", "medport.yaml:1: uses a merge key"),
        (b"a: 1\n---\nb: 2\n", "medport.yaml:2: holds a second document"),
        (b"? [a]\n: 1\n", "has a key that is no text"),
        (b"a: 1\nb: \xff\n", "medport.yaml:2: is not UTF-8"),
        (b"a: 1\n b: 2\n", "medport.yaml:2: is no YAML"),
        (b"a: \x07\n", "is no YAML"),
        (b"[" * 40, "is nested deeper than 16"),
        (b"#" * (128 * 1024 + 1), "is larger than 128 KiB"),
        (b"- 1\n", "is no mapping"),
        (b"", "is no mapping"),
    ],
)
def test_what_yaml_could_do_beyond_plain_values_is_refused_with_its_line(data: bytes, said: str) -> None:
    assert said in refused(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("2026-11-26", "2026-11-26"), ("0x10", "0x10"),
        ("007", "007"), ("1_000", "1_000"), ("0", 0), ("-3", -3), ("1.5", 1.5), ("1e3", 1000.0), ("~", None),
        ("true", True), ("'1'", "1"), ("1" * 40, "1" * 40), ("1" * 20 + "e" + "1" * 19, "1" * 20 + "e" + "1" * 19),
    ],
)  # fmt: skip
def test_a_scalar_is_what_it_looks_like(text: str, value: object) -> None:
    assert spec_yaml.parse(f"a: {text}".encode(), name="x").value == {"a": value}


def test_a_commit_that_looks_like_a_number_stays_a_text() -> None:
    commit = "1" * 38 + "e1"

    spec = specs.parse(changed("google/medgemma-4b-it", f"google/medgemma-4b-it\n    revision: {commit}"))

    assert spec.models["medgemma"].revision == commit


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("{allowed_locations: [europe-west1]}", "the location europe-west4 is not allowed"),
        ("{allowed_registries: [europe-docker.pkg.dev/exam]}", "europe-docker.pkg.dev/example/medport/serving"),
        ("{allowed_registries: [docker.pkg.dev]}", "is not allowed"),
    ],
)
def test_a_specification_is_held_against_its_own_policy(policy: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        specs.parse(changed("labels:", f"policy: {policy}\nlabels:"))


def test_what_the_policy_allows_is_read() -> None:
    policy = "{allowed_locations: [europe-west4], allowed_registries: [europe-docker.pkg.dev/example]}"

    assert specs.parse(changed("labels:", f"policy: {policy}\nlabels:")).policy.allowed_locations == [
        "europe-west4"
    ]


def test_a_machine_that_no_table_holds_is_taken_only_where_the_policy_says_so() -> None:
    machine = changed("g2-standard-24", "g9-standard-24")

    assert "in no table" in refused(machine)
    policy = machine.replace(b"labels:", b"policy: {allow_unlisted_machines: true}\nlabels:")
    assert specs.parse(policy).models["medgemma"].machine.type == "g9-standard-24"


@pytest.mark.parametrize(
    ("machine", "accelerator", "count", "fits"),
    [
        ("a3-highgpu-8g", "NVIDIA_H100_80GB", 8, True),
        ("a3-highgpu-8g", "NVIDIA_H100_80GB", 4, False),
        ("n1-standard-8", "NVIDIA_TESLA_T4", 1, True),
        ("n1-standard-8", "NVIDIA_TESLA_T4", 3, False),
        ("n1-standard-8", "NVIDIA_L4", 1, False),
        ("n1-standard-8", None, 0, True),
        ("n1-standard-8", None, 1, False),
        ("n1-standard-8", "NVIDIA_TESLA_T4", 0, False),
        ("e2-standard-4", None, 0, True),
        ("e2-standard-4", "NVIDIA_TESLA_T4", 1, False),
    ],
)
def test_accelerators_fit_their_machines(machine: str, accelerator: str | None, count: int, fits: bool) -> None:
    assert (spec_machines.fault_of(machine, accelerator, count) is None) is fits


def test_the_accelerators_of_the_table_are_those_that_google_names() -> None:
    types = pytest.importorskip("google.cloud.aiplatform_v1.types", exc_type=ImportError)
    named = {each.name for each in types.AcceleratorType}

    held = {name for name, _ in spec_machines._FIXED.values()} | set(spec_machines._ON_N1)

    assert held - named == set()


def test_the_regions_of_the_table_are_those_that_googles_client_knows() -> None:
    known = pytest.importorskip("google.cloud.aiplatform.constants.base", exc_type=ImportError).SUPPORTED_REGIONS

    assert known - {"global"} == REGIONS


def test_the_content_hash_counts_what_is_served_and_not_on_how_many_machines() -> None:
    one = specs.parse(PLAIN.encode()).content_sha256()

    same = [
        changed("{min: 2}", "{min: 3}"),
        changed("labels: {team: radiology}", "# comment\nlabels: {team: other}"),
        changed("accept_terms:", "rollout: {bake_s: 5}\naccept_terms:"),
    ]
    other = [
        changed("serving:1.0", "serving:1.1"),
        changed("{id: 1234567890}", "{id: 1234567890}\n    args: [--max-num-seqs=4]"),
        changed("{id: 1234567890}", "{id: 1234567890}\n    revision: other"),
        changed("[hai-def]", "[]"),
    ]

    assert {specs.parse(each).content_sha256() for each in same} == {one}
    assert len({one, *(specs.parse(each).content_sha256() for each in other)}) == 5


def test_a_local_target_takes_the_same_specification_and_any_location() -> None:
    data = changed("kind: vertex", "kind: local\n  url: http://127.0.0.1:8080\n  auth: {api_key_env: KEY}")

    spec = specs.parse(data.replace(b"europe-west4", b"basement"))

    assert (spec.target.url, spec.target.location) == ("http://127.0.0.1:8080", "basement")
    assert spec.content_sha256() == specs.parse(PLAIN.encode()).content_sha256()


def test_no_fault_shows_the_value_of_a_variable() -> None:
    canary = "-".join(("hf", "canary"))  # a traceback shows lines of source too

    with pytest.raises(MedportError) as caught:
        specs.parse(changed("{id: 1234567890}", f"{{}}\n    env: {{HF_TOKEN: {canary}}}"))

    assert canary not in "".join(traceback.format_exception(caught.value))


def test_argument_that_only_sounds_like_a_secret_is_taken() -> None:
    spec = specs.parse(changed("{id: 1234567890}", "{}\n    args: [--max-tokens=5, a secret, --tokens]"))

    assert spec.models["medgemma"].args == ["--max-tokens=5", "a secret", "--tokens"]


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab01:-[]{},#&*!|>'\"%@`?~\n \t\x00é"), max_size=60))
def test_any_text_is_read_or_refused_as_a_configuration(text: str) -> None:
    said = outcome(lambda: spec_yaml.parse(text.encode(), name="x"))

    assert said == "read" or said.startswith("x:")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damaged_specification_is_read_or_refused_with_a_line(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(PLAIN)))
    cut = data.draw(st.integers(0, 12))
    damaged = PLAIN[:start] + data.draw(st.text(alphabet="a1:-[]{} \n", max_size=6)) + PLAIN[start + cut :]

    said = outcome(lambda: specs.parse(damaged.encode()))

    assert said == "read" or said.startswith("medport.yaml:")
