"""What ``medport doctor --deploy`` finds before anything is deployed, in the cloud and on the local plane."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import planned
from support.certificates import Authority, Certificate
from support.deploy_plans import IMAGE, lock, spec_bytes
from support.google_apis import AGENT, DIGEST, FORBIDDEN, GoogleApis, disabled, error, reader, said
from support.plane_server import KEY, PlaneServer, plane_server
from support.service_accounts import pair

from medport import lock as locks
from medport.cli import checks
from medport.cli.checks import Outcome
from medport.errors import AuthError, MedportError, PreconditionFailed
from medport.lock import Lock, LockedFile
from medport_deploy.control import credentials as control_credentials
from medport_deploy.control.credentials import bearer
from medport_deploy.control.errors import operation_error
from medport_deploy.control.plane import ControlPlane
from medport_deploy.first_run import preflight_cloud
from medport_deploy.first_run.preflight import Preflight
from medport_deploy.lock.model_source import locked
from medport_deploy.spec import reading as specs
from medport_local.serving import keys
from medport_local.serving.keys import Grants

PROJECTS = "cloudresourcemanager.googleapis.com/v3/projects"
REPOSITORY = "artifactregistry.googleapis.com/v1/projects/example/locations/europe/repositories/medport"
TOKEN = "ya29.a-token-that-nobody-may-see"


class Quota:
    """A project's limit, the same for all metrics."""

    def __init__(self, limit: int | MedportError | None) -> None:
        self._limit = limit

    def limit(self, metric: str, location: str) -> int | None:
        if isinstance(self._limit, MedportError):
            raise self._limit
        return self._limit


def written(folder: Path, data: bytes, found: Lock | None) -> Path:
    """``medport.yaml`` and, if there is one, ``medport.lock``."""
    file = folder / "medport.yaml"
    file.write_bytes(data)
    if found is not None:
        content = json.loads(found.model_dump_json(exclude_none=True))
        content["deploy"]["sdk"] = {}
        locks.write(folder / "medport.lock", locks.checked(content))
    return file


def in_cloud(folder: Path, **changes: Any) -> Path:
    model = {"image": f"{IMAGE}@{DIGEST}", **changes.pop("model", {})}
    data = spec_bytes(model=model, **changes)
    return written(folder, data, lock(specs.parse(data), digest=DIGEST))


def outcomes(file: Path, google: GoogleApis, **more: Any) -> dict[str, Outcome]:
    given = {
        "credentials": lambda auth: bearer(lambda: TOKEN),
        "limits": Quota(8),
        "registry_credentials": lambda host: None,
        "now": lambda: google.now,
        **more,
    }
    preflight = Preflight(file, transport=google.transport(), **given)
    try:
        return {each.name: each for each in checks.run(preflight.checks())}
    finally:
        preflight.close()


def failures(found: dict[str, Outcome]) -> set[str]:
    return {name for name, each in found.items() if each.status == "failed"}


def test_a_deployment_that_can_be_done_passes_every_check(tmp_path: Path) -> None:
    found = outcomes(in_cloud(tmp_path), GoogleApis())

    assert failures(found) == set()
    assert {name for name, each in found.items() if each.status == "skipped"} == {"terraform", "key", "snapshots"}
    assert found["quotas"].detail.endswith("custom_model_serving_nvidia_l4_gpus: 4 of 8")
    assert found["image reader"].detail == f"{AGENT} may pull"


def test_the_credential_goes_to_google_alone_and_into_no_outcome(tmp_path: Path) -> None:
    google = GoogleApis()

    found = outcomes(in_cloud(tmp_path), google)

    bearers = {each.url.host for each in google.requests if "authorization" in each.headers}
    assert bearers
    assert all(host.endswith(".googleapis.com") for host in bearers)
    assert all(TOKEN not in str(each.to_dict()) for each in found.values())
    assert all(TOKEN not in str(each.url) for each in google.requests)
    # The time is asked before anybody is told who we are.
    assert "authorization" not in google.requests[0].headers


def test_checks_ask_for_nothing_that_changes_anything(tmp_path: Path) -> None:
    google = GoogleApis()

    outcomes(in_cloud(tmp_path), google)

    asked = [each for each in google.requests if each.method != "GET"]
    assert asked
    assert all(each.url.path.endswith((":testIamPermissions", ":getIamPolicy")) for each in asked)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["medport.lock", "medport.yaml"]


def test_an_api_that_is_not_on_names_the_command_that_puts_it_on(tmp_path: Path) -> None:
    place = "europe-west4-aiplatform.googleapis.com/v1/"
    found = outcomes(in_cloud(tmp_path), GoogleApis({place: disabled("aiplatform.googleapis.com")}))

    assert failures(found) == {"control plane"}
    assert "aiplatform.googleapis.com is not on in radiology" in found["control plane"].detail
    remedy = found["control plane"].remedy or ""
    assert remedy.startswith("gcloud services enable aiplatform.googleapis.com --project radiology")


def test_apis_that_the_specification_needs_are_asked_for_by_name(tmp_path: Path) -> None:
    key = "projects/radiology/locations/europe-west4/keyRings/ring/cryptoKeys/key"
    off = said({"services": [{"name": "projects/1/services/aiplatform.googleapis.com", "state": "ENABLED"}]})
    google = GoogleApis({"serviceusage.googleapis.com/": off})

    found = outcomes(in_cloud(tmp_path, keys={"kms_key_name": key}), google)

    assert failures(found) == {"APIs"}
    remedy = "gcloud services enable artifactregistry.googleapis.com cloudkms.googleapis.com --project radiology"
    assert found["APIs"].remedy == remedy


def test_a_permission_that_is_missing_names_the_role_that_brings_it(tmp_path: Path) -> None:
    have = sorted(set(preflight_cloud.PERMISSIONS) - {"aiplatform.endpoints.deploy"})
    place = f"{PROJECTS}/radiology:testIamPermissions"

    found = outcomes(in_cloud(tmp_path), GoogleApis({place: said({"permissions": have})}))

    assert failures(found) == {"permissions"}
    assert "not allowed in radiology: aiplatform.endpoints.deploy" in found["permissions"].detail
    assert found["permissions"].remedy == "ask for roles/aiplatform.user on the project"


def test_a_service_account_that_we_may_not_use_is_named(tmp_path: Path) -> None:
    account = "serving@radiology.iam.gserviceaccount.com"
    file = in_cloud(tmp_path, model={"service_account": account})

    found = outcomes(file, GoogleApis({"iam.googleapis.com/": said({})}))

    assert failures(found) == {"permissions"}
    assert account in found["permissions"].detail
    assert "roles/iam.serviceAccountUser" in (found["permissions"].remedy or "")


def test_what_we_may_not_read_is_skipped_with_the_reason(tmp_path: Path) -> None:
    closed = {"serviceusage.": FORBIDDEN, "cloudresourcemanager.": FORBIDDEN, "compute.": FORBIDDEN}
    google = GoogleApis(dict(closed))

    found = outcomes(in_cloud(tmp_path), google, limits=Quota(AuthError("no role for quotas")))

    assert failures(found) == set()
    for name in ("APIs", "permissions", "machines", "image reader"):
        assert found[name].status == "skipped"
        assert found[name].detail.startswith("not known: ")
    assert (found["quotas"].status, found["quotas"].detail) == ("skipped", "not read: no role for quotas")


@pytest.mark.parametrize(("limit", "words"), [(0, "is 0 in europe-west4"), (3, "is 3 in europe-west4")])
def test_a_quota_below_the_surge_of_a_canary_is_a_failure_with_numbers(
    tmp_path: Path, limit: int, words: str
) -> None:
    found = outcomes(in_cloud(tmp_path), GoogleApis(), limits=Quota(limit))

    assert failures(found) == {"quotas"}
    assert f"{words}, and 4 are needed at once" in found["quotas"].detail
    assert "recreate" in (found["quotas"].remedy or "")


def test_recreating_needs_the_quota_of_one_fleet_only(tmp_path: Path) -> None:
    file = in_cloud(tmp_path, rollout={"strategy": "recreate"})

    assert failures(outcomes(file, GoogleApis(), limits=Quota(2))) == set()
    assert failures(outcomes(file, GoogleApis(), limits=Quota(1))) == {"quotas"}


def test_a_machine_type_that_is_not_in_the_location_names_where_it_is(tmp_path: Path) -> None:
    file = in_cloud(tmp_path, target={"kind": "vertex", "project": "radiology", "location": "europe-west1"})

    found = outcomes(file, GoogleApis())

    assert failures(found) == {"machines"}
    assert "no g2-standard-24 in europe-west1" in found["machines"].detail
    assert "europe-west4, us-central1" in (found["machines"].remedy or "")


def test_the_image_that_is_looked_at_is_the_locked_one(tmp_path: Path) -> None:
    data, google = spec_bytes(model={"image": f"{IMAGE}:2026-11"}), GoogleApis()
    file = written(tmp_path, data, lock(specs.parse(data), digest=DIGEST))

    found = outcomes(file, google)

    asked = [each.url.path for each in google.requests if "/manifests/" in each.url.path]
    assert found["images"].status == "ok"
    assert asked == [f"/v2/example/medport/serving/manifests/{DIGEST}"]


def test_an_image_that_is_not_there_or_not_ours_to_read_is_told_apart(tmp_path: Path) -> None:
    file, host = in_cloud(tmp_path), "europe-docker.pkg.dev/"

    absent = outcomes(file, GoogleApis({host: error(404, "NOT_FOUND", "no")}))
    closed = outcomes(file, GoogleApis({host: error(403, "DENIED", "no")}))

    assert failures(absent) == failures(closed) == {"images"}
    assert absent["images"].detail.startswith("NotFound: ")
    assert closed["images"].detail.startswith("Forbidden: ")


def test_an_image_that_the_service_agent_may_not_pull_names_the_grant(tmp_path: Path) -> None:
    file = in_cloud(tmp_path)

    found = outcomes(file, GoogleApis({REPOSITORY: said(reader("user:somebody@example.com"))}))

    assert failures(found) == {"image reader"}
    remedy = found["image reader"].remedy or ""
    assert f"--member serviceAccount:{AGENT} --role roles/artifactregistry.reader" in remedy
    assert "add-iam-policy-binding medport --project example --location europe" in remedy


@pytest.mark.parametrize(
    ("repository", "project"),
    [
        (reader("allUsers"), {}),
        ({}, reader(f"serviceAccount:{AGENT}", role="roles/aiplatform.serviceAgent")),
        ({}, reader(f"serviceAccount:{AGENT}", role="roles/viewer")),
    ],
)
def test_the_service_agent_may_pull_by_the_repository_or_by_its_project(
    tmp_path: Path, repository: dict[str, Any], project: dict[str, Any]
) -> None:
    google = GoogleApis({REPOSITORY: said(repository), f"{PROJECTS}/example:getIamPolicy": said(project)})

    assert outcomes(in_cloud(tmp_path), google)["image reader"].status == "ok"


def test_a_grant_with_a_condition_or_of_another_role_is_not_taken_for_one(tmp_path: Path) -> None:
    file = in_cloud(tmp_path)
    condition = {"expression": "request.time < timestamp('2020-01-01T00:00:00Z')"}

    for policy in (
        reader(f"serviceAccount:{AGENT}", condition=condition),
        reader(f"serviceAccount:{AGENT}", role="roles/aiplatform.user"),
    ):
        assert failures(outcomes(file, GoogleApis({REPOSITORY: said(policy)}))) == {"image reader"}


def test_nothing_is_claimed_about_the_service_agent_when_a_policy_cannot_be_read(tmp_path: Path) -> None:
    google = GoogleApis({REPOSITORY: FORBIDDEN})

    found = outcomes(in_cloud(tmp_path), google)["image reader"]

    assert found.status == "skipped"
    assert AGENT in found.detail


@pytest.mark.parametrize(("skew_s", "words"), [(-300, "300 s ahead of"), (61, "61 s behind")])
def test_a_clock_that_is_off_is_a_failure_in_words(tmp_path: Path, skew_s: float, words: str) -> None:
    found = outcomes(in_cloud(tmp_path), GoogleApis(skew_s=skew_s))

    assert failures(found) == {"clock"}
    assert f"this machine's clock is {words} the server's" in found["clock"].detail
    assert "NTP" in (found["clock"].remedy or "")


@pytest.mark.parametrize("skew_s", [-60, 0, 60])
def test_a_clock_within_a_minute_is_good(tmp_path: Path, skew_s: float) -> None:
    assert outcomes(in_cloud(tmp_path), GoogleApis(skew_s=skew_s))["clock"].status == "ok"


def test_a_server_that_tells_no_time_leaves_the_clock_open(tmp_path: Path) -> None:
    assert outcomes(in_cloud(tmp_path), GoogleApis(tells_time=False))["clock"].status == "skipped"


def test_without_a_credential_nothing_is_asked_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    google = GoogleApis()

    found = outcomes(in_cloud(tmp_path), google, credentials=control_credentials.of)

    assert failures(found) == {"credential"}
    assert found["credential"].remedy == "gcloud auth application-default login"
    assert found["permissions"].detail == "needs: credential"
    assert all("authorization" not in each.headers for each in google.requests)


@contextmanager
def token_server(description: str, certificate: Certificate | None = None) -> Iterator[str]:
    """The address of a token server that refuses everybody with ``invalid_grant``; over TLS with a certificate."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps({"error": "invalid_grant", "error_description": description}).encode()
            self.send_response(400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        if certificate is not None:
            server.socket = certificate.context().wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/token"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("description", "words", "remedy"),
    [
        (
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.",
            "the credential was refused because of its time",
            "set this machine's clock right",
        ),
        ("Invalid grant: account not found", "there is no credential, or it has expired", "renew the credential"),
    ],
)
def test_a_credential_that_cannot_be_renewed_says_whether_the_clock_is_to_blame(
    tmp_path: Path, description: str, words: str, remedy: str
) -> None:
    with token_server(description) as address:
        file = in_cloud(tmp_path, target=by_key_file(tmp_path, address))

        found = outcomes(file, GoogleApis(), credentials=control_credentials.of)

    assert failures(found) == {"credential"}
    assert words in found["credential"].detail
    assert (found["credential"].remedy or "").startswith(remedy)
    assert "PRIVATE KEY" not in str(found["credential"].to_dict())


@pytest.mark.parametrize(
    ("ours", "words"),
    [(True, "there is no credential, or it has expired"), (False, "the certificate of 127.0.0.1:")],
    ids=["its-authority", "another"],
)
def test_a_token_server_is_trusted_by_the_authority_of_the_specification_alone(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, ours: bool, words: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = Authority(folder)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str((other if ours else authority).ca_file))
    # Its paths begin where the specification is.
    (tmp_path / "ca.pem").write_bytes((authority if ours else other).ca_file.read_bytes())
    with token_server("Invalid grant: account not found", authority.issue("127.0.0.1")) as address:
        target = {**by_key_file(tmp_path, address), "ca_file": "ca.pem"}

        found = outcomes(in_cloud(tmp_path, target=target), GoogleApis(), credentials=control_credentials.of)

    assert failures(found) == {"credential"}
    assert words in found["credential"].detail


def by_key_file(folder: Path, token_uri: str) -> dict[str, Any]:
    """A target in the cloud with a service account whose key file is in the folder."""
    account = {
        "type": "service_account", "client_email": "deployer@radiology.iam.gserviceaccount.com",
        "private_key": pair(0).private_pem, "token_uri": token_uri,
    }  # fmt: skip
    (folder / "key.json").write_text(json.dumps(account))
    place = {"kind": "vertex", "project": "radiology", "location": "europe-west4"}
    return {**place, "auth": {"credentials_file": "key.json"}}


def test_a_credential_that_is_refused_names_what_to_do(tmp_path: Path) -> None:
    refused = error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")

    found = outcomes(in_cloud(tmp_path), GoogleApis({"europe-west4-aiplatform.googleapis.com/v1/": refused}))

    assert failures(found) == {"control plane"}
    assert found["control plane"].detail.startswith("AuthError: ")
    assert "credential" in (found["control plane"].remedy or "")


def test_a_key_that_is_off_or_absent_is_a_failure(tmp_path: Path) -> None:
    key = "projects/radiology/locations/europe-west4/keyRings/ring/cryptoKeys/key"
    file = in_cloud(tmp_path, keys={"kms_key_name": key})

    good = outcomes(file, GoogleApis())
    off = outcomes(file, GoogleApis({"cloudkms.": said({"primary": {"state": "DISABLED"}})}))
    absent = outcomes(file, GoogleApis({"cloudkms.": error(404, "NOT_FOUND", "CryptoKey not found")}))

    assert good["key"].detail == "lies in europe-west4, as the endpoints do, and is enabled"
    assert (off["key"].status, absent["key"].status) == ("failed", "failed")
    assert "DISABLED" in off["key"].detail


def test_a_key_of_another_location_is_told_with_its_line(tmp_path: Path) -> None:
    key = "projects/radiology/locations/us-central1/keyRings/ring/cryptoKeys/key"
    file = tmp_path / "medport.yaml"
    file.write_bytes(spec_bytes(keys={"kms_key_name": key}))

    found = outcomes(file, GoogleApis())

    assert failures(found) == {"specification"}
    assert "lies in us-central1, and the endpoints in europe-west4" in found["specification"].detail


def test_without_a_lock_the_rest_is_looked_at_all_the_same(tmp_path: Path) -> None:
    file = in_cloud(tmp_path)
    (tmp_path / "medport.lock").unlink()

    found = outcomes(file, GoogleApis())

    assert failures(found) == set()
    assert (found["lock"].status, found["lock"].detail) == ("skipped", "none yet: medport deploy lock")
    assert found["images"].status == "ok"


def test_a_lock_that_is_named_must_be_there(tmp_path: Path) -> None:
    file = in_cloud(tmp_path)

    found = outcomes(file, GoogleApis(), lock_file=tmp_path / "elsewhere" / "medport.lock")

    assert failures(found) == {"lock"}
    assert "elsewhere/medport.lock" in found["lock"].detail


def test_a_lock_with_the_marks_of_a_merge_names_the_command_that_makes_it_again(tmp_path: Path) -> None:
    file = in_cloud(tmp_path)
    (tmp_path / "medport.lock").write_text("<<<<<<< HEAD\n{}\n")

    found = outcomes(file, GoogleApis())

    assert failures(found) == {"lock"}
    assert found["lock"].remedy == "make it again: medport deploy lock"


def test_a_lock_of_another_specification_is_a_failure(tmp_path: Path) -> None:
    file = in_cloud(tmp_path)
    file.write_bytes(spec_bytes(model={"image": f"{IMAGE}@{DIGEST}", "args": ["--more"]}))

    found = outcomes(file, GoogleApis())

    assert failures(found) == {"lock"}
    assert "made of another specification" in found["lock"].detail


@pytest.mark.parametrize("mode", [0o750, 0o705])
def test_a_state_that_others_can_read_is_a_failure(tmp_path: Path, mode: int) -> None:
    file = in_cloud(tmp_path)
    state = tmp_path / ".medport" / "deploy" / "chest"
    state.mkdir(parents=True)
    state.chmod(mode)

    found = outcomes(file, GoogleApis())
    state.chmod(0o700)
    mended = outcomes(file, GoogleApis())

    assert failures(found) == {"state"}
    assert found["state"].remedy == f"chmod 700 {state}"
    assert failures(mended) == set()


def test_the_directory_of_the_specification_may_be_open_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    assert outcomes(in_cloud(tmp_path), GoogleApis())["state"].status == "ok"


def test_a_file_in_the_place_of_the_state_is_a_failure(tmp_path: Path) -> None:
    file = in_cloud(tmp_path)
    (tmp_path / ".medport").write_text("")

    found = outcomes(file, GoogleApis())

    assert failures(found) == {"state"}
    assert ".medport is no directory" in found["state"].detail


def program(folder: Path, version: str) -> Path:
    """A program that says it is a terraform of that version."""
    made = folder / "terraform"
    made.write_text(f"#!/bin/sh\necho '{json.dumps({'terraform_version': version})}'\n")
    made.chmod(0o755)
    return made


@pytest.mark.parametrize(
    ("version", "provider_lock", "words"),
    [
        ("1.10.5", True, "terraform 1.10.5 is older than 1.11"),
        ("1.11.4", False, "has no .terraform.lock.hcl: any provider could come"),
    ],
)
def test_a_terraform_root_needs_a_recent_terraform_and_pinned_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, provider_lock: bool, words: str
) -> None:
    model = {"image": f"{IMAGE}@{DIGEST}", "endpoint": {"id": 1234567890}}
    file = written(tmp_path, spec_bytes(model=model, terraform={"root": "root"}), None)
    (tmp_path / "root").mkdir()
    if provider_lock:
        (tmp_path / "root" / ".terraform.lock.hcl").write_text("# pinned\n")
    monkeypatch.setenv("MEDPORT_TERRAFORM", str(program(tmp_path, version)))

    found = outcomes(file, GoogleApis())

    assert found["terraform"].status == "failed"
    assert words in found["terraform"].detail


def test_a_terraform_that_is_absent_or_good_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"image": f"{IMAGE}@{DIGEST}", "endpoint": {"id": 1234567890}}
    file = written(tmp_path, spec_bytes(model=model, terraform={"root": "root"}), None)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".terraform.lock.hcl").write_text("# pinned\n")

    monkeypatch.setenv("MEDPORT_TERRAFORM", str(tmp_path / "absent"))
    absent = outcomes(file, GoogleApis())["terraform"]
    monkeypatch.setenv("MEDPORT_TERRAFORM", str(program(tmp_path, "1.11.4")))
    good = outcomes(file, GoogleApis())["terraform"]

    assert absent.status == "failed"
    assert "install terraform" in (absent.remedy or "")
    assert (good.status, good.detail) == ("ok", "1.11.4, .terraform.lock.hcl is there")


# The local control plane


MANAGES = ("endpoints.create", "endpoints.deploy", "endpoints.predict", "endpoints.undeploy", "models.update",
           "models.upload")  # fmt: skip
GRANTS: dict[str, tuple[Grants, tuple[str, ...]]] = {
    "read": ({"actions": ["read"]}, MANAGES),
    "without-infer": ({"actions": ["read", "deploy"]}, ("endpoints.predict",)),
    "of-another-endpoint": ({"actions": ["read", "deploy", "infer"], "models": ["another"]}, MANAGES),
    "all": ({"actions": ["read", "deploy", "infer"]}, ()),
}
"""What a key is for, and which permissions a deployment lacks with it."""


@pytest.fixture(scope="module")
def keyed_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PlaneServer, dict[str, str]]]:
    """A server with a key for each of ``GRANTS``."""
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys.json"
    made = {name: keys.add(file, name, **grants) for name, (grants, _) in GRANTS.items()}
    with plane_server(folder, "--keys", str(file)) as server:
        yield server, made


def at_home(folder: Path, plane: PlaneServer, *, revision: str = planned.GEMMA["revision"], **target: Any) -> Path:
    """With a lock of another snapshot, if the revision is another."""
    changed = yaml.safe_load(planned.spec_bytes(plane.url, "preflight", model={"revision": revision}))
    changed["target"] |= {"ca_file": plane.line["ca_file"], **target}
    data = yaml.safe_dump(changed).encode()
    made = planned.lock_of(specs.parse(data))
    if revision != planned.GEMMA["revision"]:
        files = {"model.safetensors": LockedFile(sha256="cd" * 32, size_bytes=8)}
        made = made.model_copy(
            update={"models": {"reader": locked(planned.GEMMA["repo_id"], revision, "medgemma", files)}}
        )
    return written(folder, data, made)


def local_outcomes(file: Path) -> dict[str, Outcome]:
    preflight = Preflight(file)
    try:
        return {each.name: each for each in checks.run(preflight.checks())}
    finally:
        preflight.close()


CLOUD_ONLY = {"APIs", "quotas", "machines", "images", "image reader", "key"}


def test_a_local_control_plane_passes_and_says_what_does_not_apply(
    tmp_path: Path, plane: PlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)

    found = local_outcomes(at_home(tmp_path, plane))

    assert failures(found) == set()
    skipped = {name for name, each in found.items() if each.status == "skipped"}
    assert skipped == {*CLOUD_ONLY, "terraform"}
    assert found["credential"].detail == "the API key in KEY"
    assert found["permissions"].detail == "create, deploy, predict, undeploy, update, upload are allowed"
    assert found["snapshots"].detail.startswith("the server has ")


def test_a_key_that_the_local_server_does_not_know_is_a_failure(
    tmp_path: Path, plane: PlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "another-key-of-some-length")

    found = local_outcomes(at_home(tmp_path, plane))

    assert failures(found) == {"control plane"}
    assert "the API key is wrong" in found["control plane"].detail


@pytest.mark.parametrize("key", GRANTS)
def test_a_key_that_may_not_deploy_is_a_failure_before_anything_is_deployed(
    tmp_path: Path, keyed_plane: tuple[PlaneServer, dict[str, str]], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    plane, made = keyed_plane
    monkeypatch.setenv("KEY", made[key])
    missing = ", ".join(f"aiplatform.{each}" for each in GRANTS[key][1])
    before = plane.ok("GET", "/endpoints"), plane.ok("GET", "/models")

    found = local_outcomes(at_home(tmp_path, plane))

    assert failures(found) == ({"permissions"} if missing else set())
    assert found["permissions"].detail.endswith(f"this key may not: {missing}" if missing else " are allowed")
    assert not missing or "medport keys add" in (found["permissions"].remedy or "")
    assert (plane.ok("GET", "/endpoints"), plane.ok("GET", "/models")) == before


def test_a_variable_without_a_key_is_named(
    tmp_path: Path, plane: PlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEY", raising=False)

    found = local_outcomes(at_home(tmp_path, plane))

    assert "KEY is not set" in found["credential"].detail
    assert found["control plane"].status == "skipped"


def test_a_project_that_the_local_server_is_not_for_is_a_failure(
    tmp_path: Path, plane: PlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)

    found = local_outcomes(at_home(tmp_path, plane, project="other"))

    assert failures(found) == {"control plane"}
    assert "use local or" in (found["control plane"].remedy or "")


def test_a_certificate_that_is_not_trusted_names_the_key_of_the_file(
    tmp_path: Path, plane: PlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)

    found = local_outcomes(at_home(tmp_path, plane, ca_file=None))

    assert failures(found) == {"reach"}
    assert "target.ca_file" in found["reach"].detail


def test_a_snapshot_that_the_local_server_does_not_have_names_those_that_it_has(
    tmp_path: Path, plane: PlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)
    other = "99" * 20

    found = local_outcomes(at_home(tmp_path, plane, revision=other))

    assert failures(found) == {"snapshots"}
    assert planned.GEMMA["revision"][:12] in found["snapshots"].detail
    assert f"medport snapshot pull {planned.GEMMA['repo_id']}@{other}" in (found["snapshots"].remedy or "")


# The same fault once a deployment has begun


NOT_PULLED = (
    f"Vertex AI Service Agent {AGENT} does not have permission to access Artifact Registry repository"
    " projects/example/locations/europe/repositories/medport."
)


def test_a_deployment_whose_image_cannot_be_pulled_names_the_grant(
    plane: PlaneServer, control: ControlPlane
) -> None:
    plane.http.post(
        "/medport/v1/faults",
        json={"deploy": {"failure": "failing_container", "message": NOT_PULLED}, "times": 1},
    ).raise_for_status()
    version = plane.upload("unpulled", planned.GEMMA["repo_id"])
    plane.create("unpulled")
    model, _, number = version.rpartition("/")[2].partition("@")
    resources = {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1}
    body = {"displayName": "d", "model": control.model_name(f"{model}@{number}"), "dedicatedResources": resources}

    operation = plane.done(plane.ok("POST", "/endpoints/unpulled:deployModel", {"deployedModel": body}))
    found = operation_error(operation["error"], "deploy a model")

    assert isinstance(found, PreconditionFailed)
    assert "does not have permission to access Artifact Registry" in found.message
    assert "add-iam-policy-binding medport --project example --location europe" in (found.remedy or "")
    assert f"serviceAccount:{AGENT} " in (found.remedy or "")


def test_a_repository_that_the_message_does_not_name_is_left_open_in_the_remedy() -> None:
    found = operation_error({"code": 9, "message": NOT_PULLED.partition(" repository")[0]}, "deploy a model")

    assert "add-iam-policy-binding REPOSITORY --member" in (found.remedy or "")
