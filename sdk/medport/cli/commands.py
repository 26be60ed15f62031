"""chat, embed, classify, version: parse, one call to the library, output."""

from __future__ import annotations

import json as standard_json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import typer

from medport.cli import vectors
from medport.cli.output import Output
from medport.cli.session import Session, with_session
from medport.client import Client
from medport.errors import EXIT_FAILED, InputError, MedportError
from medport.results import Chat, Classification, Classifications, Embeddings
from medport.tasks.chat import ChatOptions
from medport.tasks.classify import DEFAULT_TEMPLATES, Labels

R = TypeVar("R", Embeddings, Classifications)

GROUP = 8
"""Images asked for at once; after each group the progress bar moves."""
_SHOWN_VALUES = 4
_MAX_PROMPT_CHARACTERS = 4_000_000
_PACKAGES = (
    "torch", "transformers", "pydicom", "google-auth", "httpx", "numpy", "pillow", "pydantic", "starlette",
    "uvicorn", "google-cloud-aiplatform", "openai",
)  # fmt: skip


@with_session
def chat(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", metavar="FILE", help="An image; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is to be.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, thinking included.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0, the default, is greedy; up to 2.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from this much probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text, on the same backend.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    thinking: Annotated[bool, typer.Option("--thinking", help="Ask the model to think first.")] = False,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="A LoRA adapter that the server has beside the model.")
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Print as it is written; the default on a terminal."),
    ] = None,
    wait_until_ready: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait so long for a cold endpoint.")
    ] = None,
) -> int:
    """Ask MedGemma about text and images."""
    options: dict[str, Any] = {
        "system": system, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k,
        "seed": seed, "stop": stop, "thinking": thinking or None, "adapter": adapter,
        "wait_until_ready": wait_until_ready,
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None and value != []}
    chosen = cast(ChatOptions, given)
    output = session.output
    question = _stdin() if prompt == "-" else prompt
    streamed = stream if stream is not None else output.is_terminal and not output.json
    with session.client() as client:
        ask = _streamed if streamed else _whole
        answer = ask(output, client, question, image or [], chosen)
    if answer.finish_reason == "length":
        output.note("The answer was cut: it is longer than --max-tokens.")
    return 0


def _whole(output: Output, client: Client, prompt: str, images: list[str], options: ChatOptions) -> Chat:
    with output.progress("waiting for the answer"):
        answer = client.chat(prompt, images, **options)
    if output.json:
        output.data(answer.to_dict())
        return answer
    if answer.thinking:
        output.aside(answer.thinking + "\n\n")
    output.text(answer.text)
    output.dim(answer.provenance.line())
    return answer


def _streamed(output: Output, client: Client, prompt: str, images: list[str], options: ChatOptions) -> Chat:
    with client.chat_stream(prompt, images, **options) as stream:
        with output.progress("waiting for the answer"):
            delta = next(stream, None)
        while delta is not None:
            if output.json:
                output.data({"type": "delta", "text": delta.text, "thinking": delta.thinking})
            else:
                output.aside(delta.thinking)
                output.text(delta.text, end="")
            delta = next(stream, None)
        answer = stream.result
    if output.json:
        output.data({"type": "result", **answer.to_dict()})
    else:
        output.text("")
        output.dim(answer.provenance.line())
    return answer


def _stdin() -> str:
    try:
        text = sys.stdin.read(_MAX_PROMPT_CHARACTERS + 1)
    except UnicodeDecodeError:
        raise InputError("stdin is not text", field="prompt", remedy="give UTF-8") from None
    if len(text) > _MAX_PROMPT_CHARACTERS:
        raise InputError("stdin is too long for a prompt", field="prompt", remedy="shorten it")
    return text.strip()


@with_session
def embed(
    session: Session,
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Image files.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write .npz (all) or .npy (the vectors alone)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> int:
    """Embed images and texts with MedSigLIP, in one space. Rows: images in order, then texts."""
    sources, texts = images or [], text or []
    if not sources and not texts:
        raise typer.BadParameter("give an image or --text")
    if file is not None:
        vectors.check(file, force=force)
    output = session.output
    with session.client() as client:
        parts, errors = _in_groups(output, sources, client.embed_images)
        if texts:
            found = client.embed_texts(texts)
            parts.append((range(len(sources), len(sources) + len(texts)), found))
    if not parts:
        return output.failed_items(errors)
    result = _joined(parts, errors, len(sources) + len(texts))
    inputs = [*({"image": source} for source in sources), *({"text": each} for each in texts)]
    if file is not None:
        vectors.write(file, result, [next(iter(each.values())) for each in inputs], force=force)
    if output.json:
        saved = {"vectors": None} if file else {}
        output.data({**result.to_dict(), **saved, "inputs": inputs, "output": str(file) if file else None})
    else:
        _embedding_table(output, result, inputs, file)
    return _partly_failed(output, errors, len(inputs))


def _embedding_table(
    output: Output, result: Embeddings, inputs: Sequence[Mapping[str, str]], file: Path | None
) -> None:
    if file is not None:
        count, width = result.vectors.shape
        output.text(f"{file}: {count} x {width} float32")
    else:
        rows = []
        for i, (each, vector) in enumerate(zip(inputs, result.vectors, strict=True)):
            values = " ".join(f"{value:+.4f}" for value in vector[:_SHOWN_VALUES]) + " …"
            shown = str(result.errors[i]) if i in result.errors else values
            rows.append((next(iter(each.values())), str(len(vector)), shown))
        output.table(("input", "length", "vector"), rows)
    output.dim(result.provenance.line())


@with_session
def classify(
    session: Session,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    label: Annotated[list[str] | None, typer.Option(help="A label; may be repeated.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Labels, one a line; or .json: a list, or an object of lists of prompts."
        ),
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='A sentence with {} for the label, "an X-ray with {}"; repeatable.')
    ] = None,
) -> int:
    """Score labels for images with MedSigLIP, zero-shot: logit, sigmoid probability, share among the labels."""
    if bool(label) == (labels is not None):
        raise typer.BadParameter("give --label, once or more, or --labels FILE")
    wanted: Labels = _read_labels(labels) if labels is not None else label or []
    templates = tuple(template) if template else DEFAULT_TEMPLATES
    output = session.output
    with session.client() as client:
        parts, errors = _in_groups(output, images, lambda group: client.classify(group, wanted, templates))
    if not parts:
        return output.failed_items(errors)
    items: list[Classification | None] = [None] * len(images)
    for positions, part in parts:
        for position, item in zip(positions, part.items, strict=True):
            items[position] = item
    result = Classifications(tuple(items), errors, parts[-1][1].provenance)
    if output.json:
        found = result.to_dict()
        found["items"] = [{"image": i, **item} for i, item in zip(images, found["items"], strict=True)]
        output.data(found)
        return _partly_failed(output, errors, len(images))
    for position, source in enumerate(images):
        item = items[position]
        if item is None:
            output.row(source, "bold", f"failed: {errors[position]}")
            continue
        rows = [(s.label, f"{s.logit:.2f}", f"{s.probability:.3f}", f"{s.softmax:.1%}") for s in item.scores]
        output.table(("label", "logit", "probability", "softmax"), rows, title=source, numbers=True)
    output.dim(result.provenance.line())
    return _partly_failed(output, errors, len(images))


def _read_labels(path: Path) -> Labels:
    fault = "cannot be read"
    try:
        content = path.read_text("utf-8")
        if path.suffix != ".json":
            return [line.strip() for line in content.splitlines() if line.strip()]
        found = standard_json.loads(content)
    except (OSError, ValueError):
        found = None
    else:
        fault = "is neither a list of labels nor an object of lists of prompts"
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return found
    if isinstance(found, dict) and all(_is_texts(prompts) for prompts in found.values()):
        return found
    raise InputError(f"the file {fault}", field="labels", remedy="give UTF-8 text with one label a line")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _in_groups(
    output: Output, images: Sequence[str], ask: Callable[[list[str]], R]
) -> tuple[list[tuple[Sequence[int], R]], dict[int, MedportError]]:
    """Ask for a few images at a time; what could not be used is in the errors, by position in ``images``."""
    parts: list[tuple[Sequence[int], R]] = []
    errors: dict[int, MedportError] = {}
    with output.progress("images", len(images)) as advance:
        for start in range(0, len(images), GROUP):
            group = range(start, min(start + GROUP, len(images)))
            for positions, answer in _attempt(images, group, ask):
                if isinstance(answer, MedportError):
                    errors[positions[0]] = answer
                    continue
                parts.append((positions, answer))
                errors |= {positions[at]: error for at, error in answer.errors.items()}
            advance(len(group))
    for position, error in errors.items():
        error.field = f"images[{position}]"  # it was counted within its group
    return parts, errors


def _attempt(
    images: Sequence[str], positions: Sequence[int], ask: Callable[[list[str]], R]
) -> Iterator[tuple[Sequence[int], R | MedportError]]:
    """The library refuses a group in which no image is good, by the first error: each then says its own."""
    try:
        yield positions, ask([images[position] for position in positions])
    except MedportError as error:
        if not (error.field or "").startswith("images"):
            raise
        if len(positions) == 1:
            yield positions, error
            return
        for position in positions:
            yield from _attempt(images, [position], ask)


def _joined(
    parts: Sequence[tuple[Sequence[int], Embeddings]], errors: Mapping[int, MedportError], count: int
) -> Embeddings:
    """One result for all groups; the provenance is that of the last answer."""
    last = parts[-1][1]
    rows = np.full((count, last.vectors.shape[1]), np.nan, np.float32)
    for positions, part in parts:
        rows[list(positions)] = part.vectors
    return Embeddings(rows, last.logit_scale, last.logit_bias, dict(sorted(errors.items())), last.provenance)


def _partly_failed(output: Output, errors: Mapping[int, MedportError], count: int) -> int:
    if not errors:
        return 0
    output.note(f"{len(errors)} of {count} could not be used")
    return EXIT_FAILED


@with_session
def version(session: Session) -> int:
    """Print the versions of medport, Python and the packages it may use, without importing them."""
    packages = {name: _installed(name) for name in _PACKAGES}
    if session.output.json:
        found = {"medport": metadata.version("medport"), "python": platform.python_version()}
        session.output.data({**found, "packages": packages})
        return 0
    session.output.text(f"medport {metadata.version('medport')}, Python {platform.python_version()}")
    session.output.table(("package", "version"), [(name, found or "-") for name, found in packages.items()])
    return 0


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
