"""The table of the client's calls is the one that is committed, and leaves none of the client's methods out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
SAME_AS = {"wait": "waits for a call that was begun", "to_dict": "reads nothing", "preview": "another class"}
NOT_THIS_PRODUCT = {
    "Model": {
        "evaluate": "runs a pipeline of Google's",
        "upload_scikit_learn_model_file": "other frameworks' containers",
        "upload_tensorflow_saved_model": "other frameworks' containers",
        "upload_xgboost_model_file": "other frameworks' containers",
    },
    "Endpoint": {
        "direct_predict_async": "gRPC; as direct_predict",
        "direct_raw_predict_async": "gRPC; as direct_raw_predict",
        "explain_async": "gRPC; as explain",
        "stream_direct_predict": "gRPC; as direct_predict",
        "stream_direct_raw_predict": "gRPC; as direct_raw_predict",
    },
    "BatchPredictionJob": {
        "done": "reads the state again",
        "wait_for_completion": "reads the state again",
        "wait_for_resource_creation": "waits for a call that was begun",
    },
    "OpenModel": {"batch_predict": "of a publisher's model that nobody deployed; as Model.batch_predict"},
}
"""Class → method of the client that no row is about → why."""


def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("control_table", HERE / "control_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_table_is_current() -> None:
    lines = table().table()

    committed = (HERE / "CONTROL.md").read_text("utf-8").splitlines()
    assert committed == lines, "run tests/conformance/control_table.py again"


def test_what_does_not_work_says_why() -> None:
    assert [row.said for row in table().rows() if row.outcome != "ok" and not row.why] == []


@pytest.mark.parametrize("name", ["Model", "ModelRegistry", "Endpoint", "BatchPredictionJob", "OpenModel"])
def test_every_method_of_the_client_has_a_row_or_a_reason(name: str) -> None:
    pytest.importorskip("google.cloud.aiplatform")
    from google.cloud import aiplatform, aiplatform_v1  # noqa: F401
    from google.cloud.aiplatform import models
    from vertexai import model_garden

    kind = getattr(aiplatform, name, None) or getattr(models, name, None) or getattr(model_garden, name)
    said = " ".join(row.said for row in table().rows() if re.search(rf"(?<!Private)\b{name}\b", row.said))
    methods = {
        each for each in dir(kind)
        if not each.startswith("_") and each != "client_class" and callable(getattr(kind, each))
    }  # fmt: skip
    reasons = {**SAME_AS, **NOT_THIS_PRODUCT.get(name, {})}

    without = {each for each in methods - reasons.keys() if not re.search(rf"\.{each}\(", said)}

    assert without == set()
    assert set(NOT_THIS_PRODUCT.get(name, {})) <= methods
