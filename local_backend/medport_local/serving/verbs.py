"""Google's names of permissions, and which of a key's actions each belongs to.

Source: Vertex AI IAM permissions reference; names under ``medport.`` are this server's own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from medport.errors import ConfigError

Action = Literal["infer", "read", "metrics", "deploy", "admin"]
"""What a key may do: run models, look at resources, read metrics, change resources, run the server."""
ACTIONS: tuple[Action, ...] = get_args(Action)
CHANGES: frozenset[str] = frozenset({"deploy", "admin"})
"""The actions that leave something behind."""

_CRUD = ("create", "get", "list", "update", "delete")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "aiplatform.endpoints": (*_CRUD, "predict", "explain", "deploy", "undeploy"),
    "aiplatform.models": ("upload", "get", "list", "update", "delete", "export"),
    "aiplatform.batchPredictionJobs": ("create", "get", "list", "cancel", "delete"),
    "aiplatform.operations": ("get", "list", "wait", "cancel", "delete"),
    "aiplatform.publishers": ("get", "list"),
    "aiplatform.modelGarden": ("deploy", "recommend"),
    "aiplatform.modelGardenEula": ("check", "accept"),
    "medport.faults": ("create", "get", "list", "delete"),
}
_LOOKS = frozenset({"get", "list", "wait", "check", "recommend"})
_RUNS = frozenset({"predict", "explain"})
_PATTERN = re.compile(r"[a-z]+\.[A-Za-z]+\.([A-Za-z]+|\*)")


def action_of(verb: str) -> Action:
    """The action that allows ``verb``; a name that is not known counts as a change.

    ``""``, for calls that need a known key and nothing else, is ``read``.
    """
    resource, _, word = verb.rpartition(".")
    if resource.startswith("medport."):
        return "admin"
    # Google guards jobs apart; here they are a way to run a model, and whoever may run it may look at the outcome.
    if resource == "aiplatform.batchPredictionJobs" or word in _RUNS:
        return "infer"
    return "read" if not verb or word in _LOOKS else "deploy"


VERBS: Mapping[str, Action] = {
    name: action_of(name)
    for resource, words in _WORDS.items()
    for name in (f"{resource}.{each}" for each in words)
}
"""The permissions of this server's calls."""


def covers(pattern: str, verb: str) -> bool:
    """Whether ``pattern``, a verb or ``service.resource.*``, stands for ``verb``."""
    return bool(verb) and (pattern == verb or (pattern.endswith(".*") and verb.rpartition(".")[0] == pattern[:-2]))


def is_pattern(text: str) -> bool:
    """Whether it has the form of a verb. ``aiplatform.*`` has not: that is what actions are for."""
    return _PATTERN.fullmatch(text) is not None


def check_known(patterns: Iterable[str]) -> None:
    """Refuse what stands for no call of this server: a key with a misspelt verb is found out too late.

    Raises:
        ConfigError: names the pattern, and the nearest verb.
    """
    for pattern in patterns:
        if not any(covers(pattern, verb) for verb in VERBS):
            near = difflib.get_close_matches(pattern, VERBS, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{pattern:.80} is no permission of this server", field="verb", remedy=f"did you mean {near}?"
            )
