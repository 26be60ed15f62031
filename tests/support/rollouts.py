"""Plans of a phantom's deployment, applied at a control plane that runs; a judge whose verdicts a test decides."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medport import lock as locks
from medport.errors import MedportError
from medport.lock import Lock
from medport_deploy import names
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.plan import file as plan_file
from medport_deploy.plan import making as plans
from medport_deploy.plan.making import Plan
from medport_deploy.run import apply, destroy, journal, todo
from medport_deploy.run.interrupts import Interrupts
from medport_deploy.run.journal import Header
from medport_deploy.run.steps import Event, Step
from medport_deploy.spec import reading as specs
from support import deploying
from support.planned import GEMMA, spec_bytes

Json = dict[str, Any]
Sleep = Callable[[float], None]
ROLLOUT = {"steps": [5, 25, 100], "bake_s": 60}


class Judge:
    """Passes everything that a test does not let fail: its verdicts are faults. It sends no requests.

    Args:
        log: is told what was asked, beside the calls to the control plane.
    """

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.fails: dict[str, MedportError] = {}
        self.no_way: str | None = None
        self.watched: list[float] = []
        self.beside: list[bool] = []
        self.while_watching: Callable[[], None] = lambda: None

    def straight(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> str | None:
        self._judge(f"straight {name}")
        return self.no_way

    def smoke(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> None:
        self._judge(f"smoke {name}")

    def baseline(self, name: str, *, sleep: Sleep = time.sleep) -> None:
        self._judge(f"baseline {name}")

    def gate(
        self, name: str, deployed_model_id: str, share: int, *, beside: bool, watch_s: float, sleep: Sleep
    ) -> None:
        self.watched.append(watch_s)
        self.beside.append(beside)
        self.while_watching()
        sleep(0.001)
        self._judge(f"gate {name} {share}")

    def remember(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> None: ...

    def _judge(self, what: str) -> None:
        self.log.append(what)
        if what in self.fails:
            raise self.fails[what]


class Watched:
    """A control plane whose calls that change fleets and splits are told as well as sent."""

    def __init__(self, control: ControlPlane, log: list[str]) -> None:
        self._control = control
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def set_traffic(self, endpoint: str, split: Mapping[str, int], **more: Any) -> Json:
        self._log.append(f"traffic {sorted(split.values())}")
        return self._control.set_traffic(endpoint, split, **more)

    def deploy_model(self, endpoint: str, body: Json, split: Mapping[str, int] | None = None) -> Json:
        self._log.append("roll" if "rolloutOptions" in body else f"deploy {sorted((split or {}).values())}")
        return self._control.deploy_model(endpoint, body, split)

    def undeploy_model(self, endpoint: str, id_: str, split: Mapping[str, int] | None = None) -> Json:
        self._log.append("undeploy")
        return self._control.undeploy_model(endpoint, id_, split)

    def delete_version(self, model: str, version: str) -> Json:
        self._log.append("delete version")
        return self._control.delete_version(model, version)


class Team:
    """Who deploys: a name, what was planned and what became of it."""

    def __init__(self, control: ControlPlane, url: str, root: Path, name: str) -> None:
        self.log: list[str] = []
        self.watched: Any = Watched(control, self.log)
        self.control = control
        self.url, self.root, self.name = url, root, name
        self.directory = apply.directory_of(root, name)
        self.judge = Judge(self.log)
        self.events: list[Event] = []
        self.recorded = 0
        self.changes: Json = {"rollout": ROLLOUT}

    def data(self) -> bytes:
        """The specification's file; ``changes`` are in it."""
        return spec_bytes(self.url, self.name, **self.changes)

    @property
    def spec(self) -> specs.Spec:
        return specs.parse(self.data())

    @property
    def endpoint(self) -> str:
        return self.spec.endpoint_id("reader")

    def plan(self, said: str = "", **more: Any) -> Plan:
        """What is to be done for a lock; ``said`` gives it another id with the same bytes."""
        return plans.make(self.spec, lock_of(self.spec, said), self.control, spec_bytes=self.data(), **more)

    def job(self, plan: Plan, said: str = "", **more: Any) -> todo.Job:
        parts: Json = {"trial": self.judge, "terraform": None, "terraform_file": None, **more}
        return todo.Job(
            spec=self.spec,
            lock=lock_of(self.spec, said),
            plan=plan,
            control=self.watched,
            record=self._record,
            **parts,
        )

    def header(self, plan: Plan, said: str = "", verb: str = "apply") -> Header:
        saved = plan_file.save(self.root / f"{self.name}.json", plan)
        lock = lock_of(self.spec, said)
        return Header(verb, self.name, lock.lock_id, saved.sha256, plan.target, plan.medport)

    def apply(
        self, plan: Plan, said: str = "", *, interrupts: Interrupts | None = None, **more: Any
    ) -> apply.Report:
        """Do it as ``medport deploy apply`` does; all goes back if something fails."""
        steps = todo.steps(self.job(plan, said), **more)
        return self.run(steps, self.header(plan, said), leave_open="hold" in more, interrupts=interrupts)

    def run(self, steps: list[Step], header: Header, **more: Any) -> apply.Report:
        return apply.run(
            steps,
            header,
            self.directory,
            control=self.control,
            on_event=self.events.append,
            back_on_failure=True,
            **more,
        )

    def back(self, plan: Plan, said: str = "") -> apply.Report:
        steps = todo.steps(self.job(plan, said))
        return apply.back(steps, self.header(plan, said), self.directory, control=self.control)

    def split(self, name: str = "reader") -> dict[str, int]:
        return split_of(self.control.get_endpoint(self.spec.endpoint_id(name)))

    def fleets(self, name: str = "reader") -> dict[str, Json]:
        found = self.control.get_endpoint(self.spec.endpoint_id(name)).get("deployedModels", [])
        return {str(each["id"]): each for each in found}

    def id_of(self, said: str = "", name: str = "reader") -> str:
        return names.deployed_model_id(lock_of(self.spec, said).lock_id, self.name, name)

    def versions(self, name: str = "reader") -> list[str]:
        return [each["versionId"] for each in self.control.list_versions(self.spec.model_id(name))]

    def ended(self) -> list[str | None]:
        return [each.ended for each in journal.all_of(self.directory)]

    def destroy(self) -> None:
        if self.directory.exists():
            gone = destroy.steps(self.control, self.name, journal.all_of(self.directory))
            apply.run(gone, deploying.header("destroy", self.name), self.directory, control=self.control)

    def _record(self) -> None:
        self.log.append("record")
        self.recorded += 1


def lock_of(spec: specs.Spec, said: str = "") -> Lock:
    """A lock of all models of a specification, each the phantom."""
    model = {key: GEMMA[key] for key in ("revision", "snapshot_sha256", "family", "files")}
    uri, _, digest = deploying.IMAGE.partition("@")
    return locks.checked(
        {
            "version": 1,
            "models": {name: {"model_id": GEMMA["repo_id"], **model} for name in spec.models},
            "images": {name: {"uri": uri, "digest": digest} for name in spec.models},
            "deploy": {"spec_sha256": spec.content_sha256(), "said": said},
        }
    )


def two_models(url: str, name: str) -> Json:
    """The models of a specification that has two."""
    one = json.loads(json.dumps(specs.parse(spec_bytes(url, name)).models["reader"].model_dump(mode="json")))
    return {"reader": one, "writer": json.loads(json.dumps(one))}
