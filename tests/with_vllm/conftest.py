"""vLLM itself on real weights. Where it is installed: ``MEDPORT_GEMMA_270M=DIR python -m pytest tests/with_vllm``.

DIR is a directory of Gemma 3 270M in Hugging Face layout (bfloat16, text only).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.gemma_270m import MISSING, WEIGHTS, copy_to

from medport_local.engine.engine import EngineLimits
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.scoring import Scorer
from medport_local.engine.vllm_engine import VllmEngine
from medport_local.snapshot import Snapshot, open_snapshot

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
    if WEIGHTS is None:
        pytest.skip(MISSING)
    return open_snapshot(copy_to(tmp_path_factory.mktemp("gemma") / "270m"))


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
