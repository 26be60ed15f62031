"""Run every benchmark, one after the other: ``python -m tests.benchmarks``."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUESTIONS = (
    "import_time.py",
    "sdk_overhead.py",
    "async_rate.py",
    "prepare_images.py",
    "server_overhead.py",
    "control_plane.py",
    "deploy_plan.py",
    "grammar.py",
    "sampling.py",
    "kernels.py",
    "quantised.py",
    "verify_rate.py",
    "load.py",
    "load_engine.py",
)

sys.exit(max(subprocess.run([sys.executable, str(HERE / name)], check=False).returncode for name in QUESTIONS))
