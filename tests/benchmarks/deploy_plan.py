"""Is a plan that finds nothing to do quick: under 3 s from a cold start, with Terraform and a control plane asked?

A server with one deployed phantom runs beside. Each plan is a process of its own, as the command is: it imports
Google's client, reads the endpoint, the versions and what may be left over, plans a Terraform root of two
resources that need no provider, and makes the rows, the cost and the file. Against it an interpreter that only
imports Google's client. The last case makes the same plan again in one process, without Terraform: what is left
when all is loaded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import harness

HERE = Path(__file__)
sys.path.insert(0, str(HERE.parents[1]))

from medport_deploy.plan import file as plan_file  # noqa: E402
from medport_deploy.plan import making as plans  # noqa: E402
from medport_deploy.spec import reading as specs  # noqa: E402
from medport_deploy.terraform.root import Terraform  # noqa: E402

WHAT = "plan, nothing to do"
IMPORT = "import google.cloud.aiplatform_v1"
COLD, COLD_TERRAFORM = "cold, without Terraform", "cold, with Terraform"
CPU_S: dict[str, list[float]] = {}
"""Seconds that each process took, by case."""
ROOT = 'resource "terraform_data" "one" { input = "1" }\nresource "terraform_data" "two" { input = "2" }\n'


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        child(json.loads(sys.argv[2]))
        return
    from support import deploying
    from support.plane_server import KEY, plane_server
    from support.planned import deploy, lock_of, spec_bytes

    given = harness.arguments(__doc__, rounds=10)
    with tempfile.TemporaryDirectory() as name, plane_server(Path(name)) as server:
        folder = Path(name)
        (folder / "root").mkdir()
        (folder / "root" / "main.tf").write_text(ROOT)
        (folder / "none.tfrc").touch()
        os.environ["TF_CLI_CONFIG_FILE"] = str(folder / "none.tfrc")
        terraform = Terraform(folder / "root")
        terraform.init()
        terraform.apply(terraform.plan(folder / "first.tfplan"))
        data = spec_bytes(server.url, "bench")
        spec = specs.parse(data)
        lock = lock_of(spec)
        (folder / "medport.yaml").write_bytes(data)
        (folder / "medport.lock").write_text(lock.text())
        with deploying.plane(server.url, server.line["ca_file"], KEY) as control:
            deploy(control, data, folder)

            def again() -> None:
                assert plans.make(spec, lock, control, spec_bytes=data).exit_code == 0

            job = {"folder": name, "url": server.url, "ca_file": server.line["ca_file"], "key": KEY}
            cases: dict[str, Callable[[], object]] = {
                IMPORT: lambda: run(IMPORT, "-c", IMPORT),
                COLD: lambda: run(COLD, str(HERE), "--child", json.dumps(job)),
                COLD_TERRAFORM: lambda: run(
                    COLD_TERRAFORM, str(HERE), "--child", json.dumps({**job, "terraform": True})
                ),
                "warm, without Terraform": again,
            }
            samples = harness.alternate(cases, given.rounds, warm_up=1)
    table = [
        # Of a process of its own, the CPU time is not seen by this one's clock: it was taken beside.
        harness.Row(
            r.what, r.how, r.n, r.median, r.p95, r.unit, r.ratio, r.baseline, cpu_ms(r.how, r.n) or r.cpu_ms
        )
        for r in harness.rows(WHAT, samples, IMPORT)
    ]
    harness.report(__doc__, table, given.json)


def run(how: str, *arguments: str) -> None:
    """A process of its own, with its children; what it took of the processors is kept."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    CPU_S.setdefault(how, []).append(spent)


def cpu_ms(how: str, rounds: int) -> float | None:
    """The median of the rounds that count; ``None`` for what ran in this process."""
    return statistics.median(CPU_S[how][-rounds:]) * 1e3 if how in CPU_S else None


def child(job: dict[str, Any]) -> None:
    from support import deploying

    from medport import lock as locks

    folder = Path(job["folder"])
    data = (folder / "medport.yaml").read_bytes()
    path = folder / "plan.json"
    terraform = None
    if job.get("terraform"):
        terraform = Terraform(folder / "root")
        terraform.init()
    with deploying.plane(job["url"], job["ca_file"], job["key"]) as control:
        plan = plans.make(
            specs.parse(data),
            locks.read(folder / "medport.lock"),
            control,
            spec_bytes=data,
            terraform=terraform,
            terraform_file=plan_file.terraform_file(path),
        )
    plan_file.save(path, plan)
    assert plan.exit_code == 0, plan.as_dict()
    assert plan.medport == metadata.version("medport")


if __name__ == "__main__":
    main()
