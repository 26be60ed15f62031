"""How long does ``import medport`` take, against the libraries it cannot do without?

Fresh interpreters in turn, bytecode compiled before. From each, the time of an empty interpreter in the same
round is not taken off: a caller pays it as well. ``import medport`` puts off what a client needs until one is
named: ``from medport import Client`` is the whole price. pydantic puts off its own in the same way, so the same
libraries stand there once more with ``BaseModel``, which every user of pydantic loads.
"""

from __future__ import annotations

import re
import subprocess
import sys

import harness

BASELINE, CLIENT = "import httpx, pydantic, numpy", "from medport import Client"
CODE = {
    BASELINE: BASELINE,
    "… and from pydantic import BaseModel": "import httpx, numpy; from pydantic import BaseModel",
    "import medport": "import medport",
    CLIENT: CLIENT,
    "(interpreter alone)": "pass",
}
HEAVIEST = 12


def main() -> None:
    given = harness.arguments(__doc__, rounds=25)
    cases = {how: lambda code=code: _run(code) for how, code in CODE.items()}
    samples = harness.alternate(cases, given.rounds, warm_up=2)
    # The CPU time is that of the children, which this process's own clock does not see.
    table = [
        harness.Row(r.what, r.how, r.n, r.median, r.p95, r.unit, r.ratio, r.baseline)
        for r in harness.rows("import", samples, BASELINE)
    ]
    harness.report(__doc__, table, given.json, notes=_heaviest())


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def _heaviest() -> list[str]:
    """What a client loads beyond the baseline, by the time spent in each module itself."""
    baseline = _self_us(BASELINE)
    extra = {name: us for name, us in _self_us(CLIENT).items() if name not in baseline}
    top = sorted(extra.items(), key=lambda item: -item[1])[:HEAVIEST]
    total = f"a client: {len(extra)} modules more than the baseline, {sum(extra.values()) / 1e3:.1f} ms; in ms:"
    return [total, ", ".join(f"{name} {us / 1e3:.1f}" for name, us in top)]


def _self_us(code: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], check=True, capture_output=True, text=True
    )
    return {name: int(us) for us, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)}


if __name__ == "__main__":
    main()
