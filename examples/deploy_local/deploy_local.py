"""``medport deploy`` from the first command to the last, here: python deploy_local.py [--out DIR] [--keep]

A control plane of its own, two phantom models, and two revisions of one of them. What is typed and what comes back
is printed, and kept in ``DIR/transcript.txt``. The exit code is 0 only if every step did what it should.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import next_revision
import numpy as np
from plane import FAULTS, Plane, served
from terminal import Terminal, Unexpected

import medport
from medport import lock as locks
from medport.lock import Lock
from medport_local import phantom
from medport_local.phantom import draw, files

DEPLOYMENT, PROJECT, LOCATION, KEY = "chest", "radiology", "europe-west4", "CHEST_KEY"
READER, EMBEDDER = "medgemma-phantom", "medsiglip-phantom"
ENDPOINT = f"mp-{DEPLOYMENT}--{READER}"
# A local target runs no image; its digest is carried along all the same, as it would be to the cloud.
IMAGE = "europe-docker.pkg.dev/example/medport/serving@sha256:" + "0123456789abcdef" * 4
QUESTION = "Describe this chest radiograph."
# Google's form of a profile. For the cloud, the last three lines are left out.
PROFILE = """\
[profiles.chest]
backend = "vertex"
project = "{project}"
location = "{location}"
medgemma.endpoint = "mp-chest--medgemma-phantom"
medsiglip.endpoint = "mp-chest--medsiglip-phantom"
auth.credentials_file = "reader.json"
api_endpoint = "{url}"
ca_file = "{ca_file}"
dns_suffixes = ["127.0.0.1"]
"""
EDITS = (
    ("#steps: [5, 25, 100]", "steps: [25, 50, 100]"),
    ("#bake_s: 300", "bake_s: 0.1"),
)


def main() -> int:
    """Run it all; the exit code."""
    parser = argparse.ArgumentParser(
        description="medport deploy from the first command to the last, on this machine"
    )
    parser.add_argument("--out", type=Path, default=Path("out/deploy_local"), help="where to write")
    parser.add_argument("--keep", action="store_true", help="keep the site's files, not the transcript alone")
    options = parser.parse_args()
    out = options.out.resolve()
    site = out / "site"
    if site.exists():
        parser.error(f"{options.out}/site is there already: give another --out, or remove it")
    site.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended on the way out
    began = time.monotonic()
    terminal = Terminal(site, out / "transcript.txt", _environment(site))
    try:
        _whole(terminal)
        terminal.show(f"\nAll as it should be, in {time.monotonic() - began:.0f} s.")
    except (Unexpected, medport.MedportError) as fault:
        terminal.show(f"\nFAILED: {fault}\nThe site's files are kept, with the server's log.")
        return 1
    finally:
        terminal.close()
    if not options.keep:
        shutil.rmtree(site)
    return 0


def _whole(terminal: Terminal) -> None:
    with _site(terminal) as plane:
        first = _first_deployment(terminal, plane)
        approved = locks.read(terminal.directory / "medport.lock")
        _ask(terminal, plane, first, approved)
        _next_revision(terminal)
        _failing_rollout(terminal, plane, first)
        _held_rollout(terminal, plane)
        _back(terminal, plane, first)
        _verify(terminal, approved.lock_id)
        _destroy(terminal, plane)


@contextlib.contextmanager
def _site(terminal: Terminal) -> Iterator[Plane]:
    """A site with models, keys and a server."""
    terminal.act("A site: models in a store, keys, a control plane")
    for family in ("medgemma", "medsiglip"):
        shutil.copytree(phantom.weights_dir(family), terminal.directory / "models" / family)
        terminal.run("snapshot", "add", f"models/{family}", "--store", "store", quiet=True)
    grants = [word for action in ("admin", "deploy", "infer", "read") for word in ("--action", action)]
    made = terminal.run("keys", "add", "ops", "--keys", "keys.json", *grants, "--json", hide=True, quiet=True)
    key = json.loads(made)["key"]
    terminal.environment[KEY] = key
    terminal.show(f"$ export {KEY}=…\n")
    with served(
        terminal, key, "--control-plane", "state", "--store", "store", "--tls-self-signed", "tls",
        "--keys", "keys.json", "--project", PROJECT, "--location", LOCATION, "--allow-faults",
    ) as plane:  # fmt: skip
        terminal.run(
            "keys", "add-service-account", "reader", "--keys", "keys.json", "--project", PROJECT,
            "--token-uri", f"{plane.url}/token", "--out", "reader.json",
        )  # fmt: skip
        yield plane


def _first_deployment(terminal: Terminal, plane: Plane) -> str:
    """From an empty directory to two endpoints; the id of the reader that serves."""
    terminal.act("The first deployment")
    terminal.run(
        "deploy", "init", "--name", DEPLOYMENT, "--target", "local", "--project", PROJECT, "--url", plane.url,
        "--ca-file", os.path.relpath(plane.ca_file, terminal.directory), "--api-key-env", KEY,
        "--model", f"medport/{READER}", "--model", f"medport/{EMBEDDER}", "--image", IMAGE,
    )  # fmt: skip
    _edit(terminal, *EDITS)
    terminal.run("deploy", "lock", "--mirror", "store", "--offline")
    terminal.run("deploy", "plan", expect=2, says=["endpoint.medgemma-phantom"])
    terminal.run("deploy", "apply")
    (deployed,) = plane.split(ENDPOINT)
    return deployed


def _ask(terminal: Terminal, plane: Plane, deployed: str, lock: Lock) -> None:
    """Ask through the SDK, as an application does, and see which bytes answered."""
    terminal.act("An application asks, by Google's form of a profile")
    site = terminal.directory
    profile = PROFILE.format(project=PROJECT, location=LOCATION, url=plane.url, ca_file=plane.ca_file)
    (site / "medport.toml").write_text(profile, "utf-8")
    drawing = draw.render(
        draw.sample(np.random.default_rng(7), draw.Finding.EFFUSION), np.random.default_rng(7), 256
    )
    files.write_png(site / "x-ray.png", drawing.pixels)
    terminal.show(
        f'>>> client = medport.Client(profile="chest")\n>>> answer = client.chat("{QUESTION}", images="x-ray.png")'
    )
    with contextlib.chdir(site), medport.Client(profile="chest") as client:
        answer = client.chat(QUESTION, images="x-ray.png")
    terminal.show(f">>> print(answer)\n{answer}\n>>> answer.provenance")
    said = answer.provenance
    wanted = {
        "deployed_model_id": deployed,
        "model_id": f"medport/{READER}",
        "revision": lock.models[READER].revision,
        "image_digest": IMAGE.rpartition(":")[2],
        "snapshot_sha256": lock.models[READER].snapshot_sha256,
        "lock_id": lock.lock_id,
    }
    for name in ("endpoint", *wanted):
        terminal.show(f"  {name:17} {getattr(said, name)}")
    for name, value in wanted.items():
        if getattr(said, name) != value:
            raise Unexpected(f"the answer's {name} is {getattr(said, name)}, not {value}")


def _next_revision(terminal: Terminal) -> None:
    """Another revision of the reader comes to the site, and is locked and planned."""
    terminal.act("Another revision of the reader")
    site = terminal.directory
    commit = next_revision.make(phantom.weights_dir("medgemma"), site / "models" / "next")
    terminal.run("snapshot", "add", "models/next", "--store", "store", quiet=True)
    _edit(terminal, ("#revision: main", f"revision: {commit}"))
    terminal.run("deploy", "lock", "--mirror", "store", "--offline", says=[commit])


def _failing_rollout(terminal: Terminal, plane: Plane, first: str) -> None:
    """The new revision fails at 50 % of the traffic: the old one must have it all again."""
    terminal.act("A canary that fails")
    new = _planned(terminal)
    terminal.show(f"(from 50 % of the traffic on, the new fleet {new} will answer 503: POST {FAULTS})\n")
    with plane.failing(ENDPOINT, new, from_share=50) as shares:
        terminal.run("deploy", "apply", expect=1, says=["error_ratio"])
    terminal.show(f"(the fault is taken away; shares that the new fleet had: {shares})")
    _expect_split(terminal, plane, {first: 100})


def _held_rollout(terminal: Terminal, plane: Plane) -> None:
    """The same again without the fault: held at 50 %, then promoted."""
    terminal.act("The same without the fault: held at 50 %, then promoted")
    new = _planned(terminal)
    terminal.run("deploy", "apply", "--hold", "50")
    if (share := plane.split(ENDPOINT).get(new)) != 50:
        raise Unexpected(f"the new fleet has {share} % of the traffic, not 50")
    terminal.run("deploy", "status")
    terminal.run("deploy", "promote")
    _expect_split(terminal, plane, {new: 100})


def _back(terminal: Terminal, plane: Plane, first: str) -> None:
    """Back to what was verified before."""
    terminal.act("Back to the revision before, whose fleet still runs")
    terminal.run("deploy", "rollback")
    _expect_split(terminal, plane, {first: 100})
    terminal.run("deploy", "history")


def _verify(terminal: Terminal, lock_id: str) -> None:
    """What serves is what was approved, by a report that is signed.

    The files of the site still say the other revision; what was kept when it was verified says this one.
    """
    terminal.act("Is what serves what was approved?")
    site = terminal.directory
    kept = site / ".medport" / "deploy" / DEPLOYMENT / "approved" / lock_id
    for name in ("medport.yaml", "medport.lock"):
        shutil.copy(kept / name, site / name)
    terminal.show(f"$ cp {kept}/* .\n")
    terminal.run("bundle", "keygen", "key.pem", "pub.pem")
    terminal.run("deploy", "verify", "--report", "report.json", "--sign", "key.pem")
    terminal.run("deploy", "check-report", "report.json", "--key", "pub.pem")


def _destroy(terminal: Terminal, plane: Plane) -> None:
    """Take it all away."""
    terminal.act("Take it all away")
    terminal.run("deploy", "destroy", "--yes")
    left = plane.left()
    terminal.show(f"GET …/endpoints, …/models: {left or 'nothing left'}")
    if left:
        raise Unexpected(f"{left} are left")


def _planned(terminal: Terminal) -> str:
    """Plan, and the id of the reader's new fleet."""
    terminal.run("deploy", "plan", expect=2, says=[f"deployed_model.{READER}"])
    saved = terminal.directory / ".medport" / "deploy" / DEPLOYMENT / "plan.json"
    rows = json.loads(saved.read_text("utf-8"))["plan"]["rows"]
    ids = [
        str(row["after"]["id"])
        for row in rows
        if row["address"] == f"deployed_model.{READER}" and row["action"] == "create"
    ]
    if len(ids) != 1:
        raise Unexpected(f"the plan makes {len(ids)} fleets of the reader, not 1")
    return ids[0]


def _expect_split(terminal: Terminal, plane: Plane, wanted: dict[str, int]) -> None:
    split = plane.split(ENDPOINT)
    terminal.show(f"(traffic of {ENDPOINT}: {split})")
    if split != wanted:
        raise Unexpected(f"the traffic is {split}, not {wanted}")


def _edit(terminal: Terminal, *edits: tuple[str, str]) -> None:
    """Change ``medport.yaml`` as a person would in an editor: the first place of each text."""
    file = terminal.directory / "medport.yaml"
    text = file.read_text("utf-8")
    for before, after in edits:
        if before not in text:
            raise Unexpected(f"medport.yaml does not hold {before!r}")
        text = text.replace(before, after, 1)
        terminal.show(f"(medport.yaml, edited: {before} -> {after})")
    terminal.show()
    file.write_text(text, "utf-8")


def _environment(site: Path) -> dict[str, str]:
    """Of the commands: nothing of this user's settings counts, and nothing is written outside the site."""
    for name in [each for each in os.environ if each.startswith("MEDPORT_")]:
        del os.environ[name]
    for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
        os.environ[f"XDG_{kind}_HOME"] = str(site / "home")
    (site / "home" / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"] = str(site / "home" / "tmp")
    os.environ["NO_COLOR"] = "1"
    return dict(os.environ)


if __name__ == "__main__":
    sys.exit(main())
