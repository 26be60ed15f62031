"""What ``make demo`` runs: the job of both models on drawn X-rays, in this process and over TLS, side by side."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import medport
from medport_local.phantom import draw, files, sheet, words

SEED = 20_261_124
COUNT = 24
QUESTIONS = {"en": "Describe this chest radiograph.", "zh": "請描述這張胸部X光。"}
SENTENCE = "a pleural effusion on the left"
TEMPLATE = "a chest radiograph showing {}"
NOTICE = "phantom models, trained on drawings, not for medical use"


@dataclass(frozen=True, slots=True)
class Case:
    """One drawing: what it shows, and the file it was written to."""

    attributes: draw.Attributes
    box: draw.Box | None
    pixels: draw.Gray8
    path: Path


def run(out: Path) -> int:
    """Run the demo, write its files under ``out``, and give the exit code: 1 if the two backends disagree."""
    console = Console(soft_wrap=True)
    console.print(f"[bold]medport demo[/bold]: {NOTICE}\n")
    began = time.monotonic()
    cases = write_cases(out)
    console.print(f"drew {COUNT} X-rays into {out} ({sum(c.path.suffix == '.dcm' for c in cases)} DICOM)\n")
    with medport.Client(backend="in-process") as client:
        here = _show(console, client, cases)
        boxes = [_box(client, case) for case in cases]
    picture = sheet.write(
        out / "contact-sheet.png",
        [
            sheet.Panel(c.pixels, words.label(c.attributes.finding, "en"), best, c.box, box)
            for c, best, box in zip(cases, here.classes, boxes, strict=True)
        ],
    )
    console.print(f"\ncontact sheet: {picture} (green: drawn, orange: found by the model)\n")
    with _server(out) as settings, medport.Client(**settings) as client:
        there = _ask(client, cases)
    same = here.answers == there.answers and bool(np.abs(here.vectors - there.vectors).max() < 1e-5)
    verdict = "identical" if same else "[red]DIFFERENT[/red]"
    console.print(f"in-process and TLS server answered {len(here.answers)} calls: [bold]{verdict}[/bold]")
    for answers in (here, there):
        _provenance(console, answers.provenance)
    console.print(f"\ndone in {time.monotonic() - began:.0f} s. Every result is preliminary; {NOTICE}.")
    return 0 if same else 1


def write_cases(out: Path) -> list[Case]:
    """Draw ``COUNT`` X-rays from a fixed seed; every fourth becomes a 12-bit DICOM, half of them inverted."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    cases = []
    for i in range(COUNT):
        attributes = draw.sample(rng, list(draw.Finding)[i % len(draw.Finding)])
        drawing = draw.render(attributes, rng, 256)
        if i % 4 == 0:
            path = files.write_dicom(out / f"phantom-{i:02}.dcm", drawing.pixels, inverted=i % 8 == 0)
        else:
            path = files.write_png(out / f"phantom-{i:02}.png", drawing.pixels)
        cases.append(Case(attributes, drawing.box, drawing.pixels, path))
    return cases


@dataclass(frozen=True, slots=True)
class Answers:
    """What one backend said: texts and classes that must be equal on the other, vectors equal within rounding."""

    answers: tuple[str, ...]
    classes: tuple[str, ...]
    vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    provenance: medport.Provenance


def _ask(client: medport.Client, cases: Sequence[Case]) -> Answers:
    """The calls that are compared: a report in each language, a stream, classes, embeddings."""
    reports = [client.chat(question, images=cases[0].path) for question in QUESTIONS.values()]
    with client.chat_stream(QUESTIONS["en"], images=cases[1].path) as stream:
        streamed = "".join(delta.text for delta in stream)
    labels = [words.label(finding, "en") for finding in draw.Finding]
    found = client.classify([c.path for c in cases], labels, templates=[TEMPLATE])
    classes = tuple(item.best.label if item else "-" for item in found)
    vectors = client.embed_images([c.path for c in cases]).vectors
    return Answers((*(r.text for r in reports), streamed, *classes), classes, vectors, reports[0].provenance)


def _show(console: Console, client: medport.Client, cases: Sequence[Case]) -> Answers:
    """The same calls, shown as they come."""
    for language, question in QUESTIONS.items():
        console.print(f"[bold]chat ({language})[/bold] {question} {cases[0].path.name}")
        console.print(f"{client.chat(question, images=cases[0].path)}\n", highlight=False, markup=False)
    console.print(f"[bold]stream[/bold] {QUESTIONS['en']} {cases[1].path.name}")
    with client.chat_stream(QUESTIONS["en"], images=cases[1].path) as stream:
        for delta in stream:
            console.print(delta.text, end="", highlight=False, markup=False)
    console.print("\n")
    _show_skills(console, client, cases)
    answers = _ask(client, cases)
    _class_table(console, cases, answers.classes)
    query = client.embed_texts(SENTENCE).vectors[0]
    nearest = np.argsort(-answers.vectors @ query)[:6]
    console.print(f'\n[bold]nearest to[/bold] "{SENTENCE}"')
    for position in nearest:
        case = cases[position]
        shown = words.report(case.attributes, "en").partition(".")[0]
        console.print(f"  {answers.vectors[position] @ query:.3f}  {case.path.name}  {shown}", highlight=False)
    return answers


def _show_skills(console: Console, client: medport.Client, cases: Sequence[Case]) -> None:
    """Two images compared, slices, a thought before the answer, JSON, and text alone."""
    normal, nodule, effusion = (cases[i].path for i in (0, 1, 2))
    slices = [part for i, path in enumerate((normal, effusion, normal), 1) for part in (path, f"SLICE {i}")]
    asked: list[tuple[str, medport.Chat]] = [
        ("What has changed?", client.chat("What has changed?", images=[normal, nodule])),
        (
            "Which slice shows a finding?",
            client.chat([{"role": "user", "content": [*slices, "\nWhich slice shows a finding?"]}]),
        ),
        ("Answer in JSON.", client.chat("Answer in JSON.", images=effusion)),
        ("thinking", client.chat("Describe this chest radiograph.", images=nodule, thinking=True)),
        ("什麼是氣胸？", client.chat("什麼是氣胸？")),
    ]
    for question, answer in asked:
        thought = f"({answer.thinking}) " if answer.thinking else ""
        console.print(f"[bold]{question}[/bold]", end="  ")
        console.print(f"{thought}{answer.text}", highlight=False, markup=False)
    console.print()


def _class_table(console: Console, cases: Sequence[Case], classes: Sequence[str]) -> None:
    table = Table("image", "drawn", "zero-shot", title=f"classify {len(cases)} images")
    right = 0
    for case, best in zip(cases, classes, strict=True):
        drawn = words.label(case.attributes.finding, "en")
        right += drawn == best
        table.add_row(case.path.name, drawn, best if drawn == best else f"[red]{best}[/red]")
    console.print(table)
    console.print(f"{right} of {len(cases)} as drawn")


def _box(client: medport.Client, case: Case) -> draw.Box | None:
    """The box that the model gives for its finding, if its answer holds one in the form it was trained on."""
    answer = client.chat("Locate the finding.", images=case.path, max_tokens=96).text
    try:
        boxes = json.loads(answer.partition("```json")[2].partition("```")[0])
        top, left, bottom, right = (int(v) for v in boxes[0]["box_2d"])
    except (ValueError, LookupError, TypeError):
        return None
    return top, left, bottom, right


@contextmanager
def _server(out: Path) -> Iterator[dict[str, str]]:
    """A real ``medport serve`` with TLS and a key, as a process of its own; yields the client's settings."""
    key = secrets.token_urlsafe(24)
    command = [
        sys.executable, "-m", "medport.cli", "serve", "--host", "127.0.0.1", "--port", "0",
        "--tls-self-signed", str(out / "tls"), "--api-key-env", "MEDPORT_DEMO_KEY", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "MEDPORT_DEMO_KEY": key}
    with (
        (out / "serve.log").open("w") as log,
        subprocess.Popen(  # noqa: S603 (our own command line)
            command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            if not line:
                raise medport.ServerError("the server did not start", remedy=f"see {out / 'serve.log'}")
            ready = json.loads(line)
            yield {"backend": "local", "url": ready["url"], "ca_file": ready["ca_file"], "api_key": key}
        finally:
            process.terminate()


def _provenance(console: Console, provenance: medport.Provenance) -> None:
    snapshot = (provenance.snapshot_sha256 or "unknown")[:16]
    console.print(
        f"  {provenance.kind:10} {provenance.model_id}@{(provenance.revision or 'unknown')[:12]} "
        f"snapshot sha256 {snapshot}… request {provenance.request_id}",
        highlight=False,
    )
