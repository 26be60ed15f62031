"""A base model has no chat template, and is measured all the same: tokens go in, so none is ever rendered."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medport_local.snapshot import MANIFEST

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""In the manner of Gemma's own."""


@contextmanager
def with_template(directory: Path) -> Iterator[Path]:
    """The directory itself if it has a chat template, else a passing one of the same files and ``PLAIN``.

    Files are linked where the file system allows it. A manifest stays behind: it does not list the template.
    Load within the block; what is loaded outlives it.
    """
    if _has_template(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="medport-bench-") as made:
        for file in directory.iterdir():
            if file.is_file() and file.name != MANIFEST:
                _link(file, Path(made) / file.name)
        (Path(made) / "chat_template.jinja").write_text(PLAIN)
        yield Path(made)


def _has_template(directory: Path) -> bool:
    if any((directory / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(settings.get("chat_template"))


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copy(file, target)
