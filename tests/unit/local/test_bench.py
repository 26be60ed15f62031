"""``medport bench``: the arithmetic of its report, the workers and their pipes, and the whole on a small model."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medport.errors import ConfigError
from medport_local import cli_bench
from medport_local.bench import report, rival_transformers, rivals, tasks, turns
from medport_local.bench.process import Worker, WorkerFailed
from medport_local.bench.rivals import OWN, Plan
from medport_local.bench.tasks import Figure
from medport_local.bench.template import with_template
from medport_local.bench.turns import Sample
from medport_local.bench.worker import answer_lines, draw_from
from medport_local.snapshot import Snapshot, open_snapshot

ECHO = """
import json, sys
print(json.dumps({"value": {"can": ["decode"], "threads": 1, "dtype": "float32", "versions": {}}}), flush=True)
for line in sys.stdin:
    %s
"""


def samples_of(what: str, **rates: list[float]) -> list[Sample]:
    return [
        Sample(how, i, Figure(what, "tokens/s", (rate,)))
        for how, each in rates.items()
        for i, rate in enumerate(each)
    ]


class Counting:
    """A rival without a model."""

    packages = ("torch", "no-such-package")

    def load(self) -> dict[str, Any]:
        return {"can": ["decode", "prefill"], "threads": 1}

    def decode(self, batch: int, prompt: int, tokens: int, seed: int) -> list[float]:
        return [0.5] * tokens

    def prefill(self, length: int, seed: int) -> float:
        raise ValueError("no\nroom")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Worker]]:
    """Makes workers that do one statement for each line they are told."""
    made: list[Worker] = []

    def make(statement: str) -> Worker:
        file = tmp_path / f"{len(made)}.py"
        file.write_text(ECHO % statement)
        made.append(Worker([sys.executable, str(file)], threads=1, log=tmp_path / "log"))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def test_ratio_is_of_the_same_round_and_not_of_medians() -> None:
    # A machine that halves its speed from round to round: both medians are equal, and each ratio is 2.
    samples = samples_of("decode", medport=[8, 4, 2], transformers=[4, 2, 1])

    (own, base) = report.rows(samples)

    assert (own.how, own.median, own.ratio, own.baseline) == ("medport", 4, 2, "transformers")
    assert (base.how, base.median, base.ratio, base.baseline) == ("transformers", 2, None, None)


def test_round_that_the_baseline_lost_gives_no_ratio() -> None:
    samples = [*samples_of("decode", medport=[8, 4, 100]), *samples_of("decode", transformers=[4, 2])]

    own = report.rows(samples)[0]

    assert (own.n, own.ratio) == (3, 2)


def test_without_a_baseline_there_are_figures_and_no_ratios() -> None:
    (own,) = report.rows(samples_of("decode", medport=[3, 1, 2]))

    assert (own.n, own.median, own.low, own.high, own.ratio, own.p99) == (3, 2, 1, 3, None, None)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_a_value_that_enough_others_do_not_exceed(values: list[float], percent: float) -> None:
    ordered = sorted(values)

    found = report.percentile(ordered, percent)

    assert found in ordered
    assert sum(value <= found for value in ordered) >= len(ordered) * percent / 100
    assert sum(value < found for value in ordered) <= len(ordered) * percent / 100


def test_p99_waits_for_a_hundred_values() -> None:
    few = [Sample("medport", 0, Figure("gap", "ms", tuple(float(i) for i in range(99))))]
    enough = [*few, Sample("medport", 1, Figure("gap", "ms", (99.0,)))]

    assert report.rows(few)[0].p99 is None
    assert report.rows(enough)[0].p99 == 98


def test_decode_figures_count_the_tokens_of_all_rows() -> None:
    (task,) = tasks.decode_tasks([4])

    rate, gaps = tasks.figures(task, [0.1, 0.3])

    assert rate.values == (pytest.approx(4 * 2 / 0.4),)
    assert gaps == Figure("between tokens, batch 4", "ms", (100.0, 300.0))


def test_mixed_figures_count_from_each_arrival() -> None:
    task = tasks.Task("mixed", "serve", {"arrivals": [0.0, 1.0], "prompts": [3, 3], "answers": [10, 30]})

    rate, first, done = tasks.figures(task, {"first": [0.5, 1.25], "done": [2.0, 4.0]})

    assert rate.values == (10.0,)
    assert first.values == (500.0, 250.0)
    assert done.values == (2000.0, 3000.0)


def test_mixed_requests_are_the_same_for_the_same_seed() -> None:
    one, same, other = (tasks.mixed_task(16, mean_gap_s=0.5, seed=seed) for seed in (1, 1, 2))

    assert one == same != other
    assert one.arguments["arrivals"] == sorted(one.arguments["arrivals"])
    assert all(32 <= length <= 512 for length in one.arguments["prompts"])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 20), max_size=4), st.integers())
def test_prompts_are_plain_tokens_and_follow_from_the_seed(lengths: list[int], seed: int) -> None:
    draw = draw_from(100, 200)

    prompts = draw(lengths, seed)

    assert list(map(len, prompts)) == lengths
    assert all(100 <= token < 200 for prompt in prompts for token in prompt)
    assert draw(lengths, seed) == prompts


def test_worker_answers_each_line_and_a_fault_with_its_text() -> None:
    rival, out = Counting(), io.StringIO()
    said = [
        {"do": "decode", "batch": 1, "prompt": 1, "tokens": 2, "seed": 0},
        {"do": "prefill", "length": 1, "seed": 0},
    ]

    answer_lines(rival, io.StringIO("".join(json.dumps(line) + "\n" for line in said)), out)

    facts, decoded, failed = map(json.loads, out.getvalue().splitlines())
    assert facts["value"]["can"] == ["decode", "prefill"]
    assert set(facts["value"]["versions"]) == {"python", "torch"}
    assert decoded == {"value": [0.5, 0.5]}
    assert failed == {"error": "ValueError: no room"}
    assert rival.closed


def test_process_that_ends_is_a_failure_with_its_exit_code(script: Callable[[str], Worker]) -> None:
    worker = script("sys.exit(7)")
    worker.loaded(20)

    with pytest.raises(WorkerFailed, match="exit code 7"):
        worker.ask("decode", 20)
    with pytest.raises(WorkerFailed):
        worker.ask("decode", 20)


def test_process_that_does_not_answer_is_given_up(script: Callable[[str], Worker]) -> None:
    worker = script("pass")
    worker.loaded(20)

    with pytest.raises(WorkerFailed, match="no answer"):
        worker.ask("decode", 0.05)


def test_interpreter_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="FileNotFoundError"):
        Worker([str(tmp_path / "python")], threads=1, log=tmp_path / "log")


def test_rival_that_fails_in_a_round_drops_out_and_the_others_go_on(script: Callable[[str], Worker]) -> None:
    sound = script('print(json.dumps({"value": [0.1]}), flush=True)')
    faulty = script('print(json.dumps({"error": "MemoryError"}), flush=True)')
    workers = {OWN: sound, "transformers": faulty}
    there = turns.Field(workers, {name: worker.loaded(20) for name, worker in workers.items()})

    samples = turns.take_turns(there, tasks.decode_tasks([1]), rounds=2)

    assert there.absent == {"transformers": "decode, batch 1: MemoryError"}
    assert [(s.how, s.round) for s in samples if s.figure.unit == "tokens/s"] == [(OWN, 0), (OWN, 1)]


def test_each_round_begins_with_another_engine(script: Callable[[str], Worker], tmp_path: Path) -> None:
    order = tmp_path / "order"
    told = 'open({!r}, "a").write({!r}); print(json.dumps({{"value": [0.1]}}), flush=True)'
    workers = {name: script(told.format(str(order), name)) for name in "ab"}
    there = turns.Field(workers, {name: worker.loaded(20) for name, worker in workers.items()})

    turns.take_turns(there, tasks.decode_tasks([1]), rounds=3, warm_up=1)

    assert order.read_text() == "abbaabba"


def test_unknown_rival_and_missing_file_are_errors_with_a_remedy(gemma_snapshot: Snapshot, tmp_path: Path) -> None:
    plan = Plan(snapshot=gemma_snapshot, logs=tmp_path)

    with pytest.raises(ConfigError, match="choose from transformers"):
        rivals.rival_worker("no-such-engine", plan)
    with pytest.raises(ConfigError, match="--gguf"):
        rivals.rival_worker("llama.cpp", plan)


def test_plain_ids_hold_no_control_token(gemma_snapshot: Snapshot, text_gemma_folder: Path) -> None:
    from medport_local.engine.loading import load_gemma

    low, high = rivals.plain_ids(gemma_snapshot)
    gemma = load_gemma(gemma_snapshot)

    assert low < high
    assert not gemma.text.control_ids & set(range(low, high))
    assert rivals.plain_ids(open_snapshot(text_gemma_folder))[0] > 0


def test_model_without_a_template_gets_one_and_stays_as_it_was(text_gemma_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in text_gemma_folder.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    before = sorted(file.name for file in bare.iterdir())

    with with_template(bare) as folder:
        made = {file.name for file in folder.iterdir()}
        opened = open_snapshot(folder)

    assert made == {*before, "chat_template.jinja"}
    assert "model.safetensors" in opened.shards
    assert sorted(file.name for file in bare.iterdir()) == before
    assert not folder.exists()


def test_model_with_a_template_is_taken_as_it_is(text_gemma_folder: Path) -> None:
    with with_template(text_gemma_folder) as folder:
        assert folder == text_gemma_folder


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.callback()(lambda: None)
    cli_bench.register(app)
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--dtype", "float16"], "dtype"),
        (["--batches", "1,x"], "batches"),
        (["--prefill", "0"], "prefill"),
        (["--rivals", "transformers,transformers"], "rivals"),
        (["--snapshot", "medgemma"], "snapshot"),
        (["--python", "vllm-cpu"], "python"),
    ],
)
def test_wrong_option_is_refused_before_anything_is_loaded(arguments: list[str], field: str) -> None:
    result = invoke(*arguments)

    assert isinstance(result.exception, ConfigError)
    assert result.exception.field == field


def test_bench_measures_both_engines_and_names_the_one_that_is_absent(gemma_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "bench.json"

    result = invoke(
        f"--snapshot=medgemma={gemma_folder}", "--rounds=1", "--batches=1,2", "--prefill=48",
        "--rivals=transformers,llama.cpp", f"--json={file}",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert set(found) == {"schema", "time", "machine", "snapshots"}
    (part,) = found["snapshots"]
    assert set(part) == {"snapshot", "settings", "engines", "absent", "rows", "samples"}
    assert part["snapshot"]["snapshot_sha256"] == open_snapshot(gemma_folder).snapshot_sha256
    assert [engine["name"] for engine in part["engines"]] == ["medport", "transformers"]
    assert {engine["dtype"] for engine in part["engines"]} == {"float32"}
    assert [each["name"] for each in part["absent"]] == ["llama.cpp"]
    assert "llama.cpp: not measured" in result.output
    rows = {(row["what"], row["how"]): row for row in part["rows"]}
    for what in ("decode, batch 1", "decode, batch 2", "prefill 48", "encode images", "resident memory"):
        assert rows[what, "medport"]["median"] > 0
        assert rows[what, "medport"]["ratio"] is not None
        assert rows[what, "transformers"]["ratio"] is None
    assert rows["between tokens, batch 2", "medport"]["n"] == tasks.STEPS


def test_snapshot_of_the_other_family_is_refused(siglip_folder: Path) -> None:
    result = invoke(f"--snapshot=medgemma={siglip_folder}")

    assert isinstance(result.exception, ConfigError)
    assert "this is a medsiglip" in str(result.exception)


@pytest.fixture(scope="module")
def generate(text_gemma_folder: Path) -> rival_transformers.Engine:
    options = {"path": str(text_gemma_folder), "dtype": "float32", "device": "cpu", "threads": 1}
    engine = rival_transformers.Engine(options, draw_from(176, 352))
    engine.load()
    return engine


def test_transformers_generates_as_many_tokens_as_asked_whatever_it_says(
    generate: rival_transformers.Engine,
) -> None:
    assert len(generate.decode(3, 20, 30, seed=1)) == 30


def test_transformers_batches_those_who_wait_and_answers_all_at_the_end(
    generate: rival_transformers.Engine,
) -> None:
    arrivals = [0.0, 0.0, 30.0]

    with pytest.MonkeyPatch.context() as patch:
        # The third comes in half a minute: that is not waited for, but noted.
        slept: list[float] = []
        clock = iter(range(10**6))
        patch.setattr(rival_transformers.time, "sleep", slept.append)
        patch.setattr(rival_transformers.time, "perf_counter", lambda: float(next(clock)))
        found = generate.serve(arrivals, [10, 20, 15], [2, 4, 3], seed=1)

    assert found["done"][0] == found["done"][1] < found["done"][2]
    assert found["first"][0] == found["first"][1] < found["done"][0]
    assert slept
    assert found["first"][2] > 30


def own_worker(snapshot: Snapshot, logs: Path, **options: Any) -> Worker:
    worker = rivals.own_worker(Plan(snapshot=snapshot, logs=logs, threads=1, **options))
    worker.loaded(60)
    return worker


def test_own_engine_answers_every_command_that_it_says_it_can(gemma_snapshot: Snapshot, tmp_path: Path) -> None:
    arguments: Mapping[str, Mapping[str, Any]] = {
        "stall": {"streams": 2, "prompt": 128},
        "second_question": {"question": 8},
        "serve": {"arrivals": [0.0, 0.01], "prompts": [20, 30], "answers": [3, 5]},
    }
    worker = own_worker(gemma_snapshot, tmp_path, reuse_bytes=2**20)
    try:
        found = {do: worker.ask(do, 60, **given, seed=1) for do, given in arguments.items()}
    finally:
        worker.close()

    assert len(found["stall"]["alone"]) >= 60
    assert len(found["stall"]["during"]) >= 2
    assert found["second_question"]["second"] > 0
    assert all(first <= done for first, done in zip(*found["serve"].values(), strict=True))


def test_siglip_is_measured_by_images_alone(siglip_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"

    result = invoke(f"--snapshot=medsiglip={siglip_folder}", "--rounds=1", "--images=2", f"--json={file}")

    assert result.exit_code == 0, result.output
    (part,) = json.loads(file.read_text())["snapshots"]
    measured = {(row["what"], row["how"]) for row in part["rows"] if row["unit"] == "images/s"}
    assert measured == {("embed images", "medport"), ("embed images", "transformers")}
