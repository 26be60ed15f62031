"""vLLM itself on real weights. Run where it is installed: ``GEMMA_270M=DIR python -m pytest tests/vllm``.

DIR is a directory of Gemma 3 270M in Hugging Face layout (bfloat16, text only).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from medport_local.engine.engine import EngineLimits
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.scoring import Scorer
from medport_local.engine.vllm_engine import VllmEngine
from medport_local.snapshot import Snapshot, open_snapshot

_WEIGHTS = os.environ.get("GEMMA_270M")
# On a busy machine several threads spend their time at barriers. Its processes inherit this.
_THREADS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
LIMITS = EngineLimits(max_running=4, max_queue=4, kv_bytes=512 * 2**20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))
        # Its own warnings are its own affair.
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _THREADS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The weights with what MedGemma has and the base model lacks: a chat template, and names of image tokens."""
    if _WEIGHTS is None:
        pytest.skip("GEMMA_270M does not name a directory of weights")
    folder = tmp_path_factory.mktemp("gemma") / "270m"
    shutil.copytree(_WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    # MedGemma's tokenizers name these also where the model takes text only.
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<unused6241>"}
    tokenizer["extra_special_tokens"] = names
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return open_snapshot(folder)


@pytest.fixture(scope="session")
def gemma(snapshot: Snapshot) -> Gemma:
    return load_gemma(snapshot, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def reference(gemma: Gemma) -> Scorer:
    return Scorer(gemma)


@pytest.fixture(scope="session")
def engine(gemma: Gemma, snapshot: Snapshot) -> Iterator[VllmEngine]:
    engine = VllmEngine(gemma, snapshot, limits=LIMITS, dtype="float32")
    yield engine
    engine.close()
