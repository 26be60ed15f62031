"""``medport keys`` for service accounts: files that Google's library takes; nothing is written over nor left."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from google.oauth2 import service_account
from support.service_accounts import pair
from typer.testing import CliRunner, Result

from medport.errors import AuthError, ConfigError
from medport_local import cli_keys, key_files
from medport_local.serving import keys
from medport_local.serving.keyring import KeyRing

URI = "https://node1:8443/token"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "ci.json"


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(cli_keys.app, [command, *map(str, arguments)])


def added(file: Path, out: Path, *more: object, name: str = "ci") -> Result:
    return run("add-service-account", name, "--keys", file, "--out", out, "--token-uri", URI, *more)


def refusal(result: Result) -> ConfigError:
    assert isinstance(result.exception, ConfigError), result.output
    return result.exception


def token_of(out: Path, *scopes: str) -> str:
    """What Google's library makes of the file, without a call to anybody."""
    credentials = service_account.Credentials.from_service_account_file(str(out), scopes=scopes)
    credentials = credentials.with_always_use_jwt_access(True)
    credentials._create_self_signed_jwt("https://aiplatform.googleapis.com/")
    credentials.refresh(None)
    return str(credentials.token)


def test_credential_is_one_for_googles_library_and_the_server(file: Path, out: Path) -> None:
    assert added(file, out, "--action", "deploy", "--model", "chest").exit_code == 0

    for scopes in ((), ("https://www.googleapis.com/auth/cloud-platform",)):
        principal = KeyRing(file=file).identify(token_of(out, *scopes))
        assert (principal.name, principal.actions, principal.models) == ("ci", {"deploy"}, {"chest"})
    credential = json.loads(out.read_text())
    assert credential["client_email"] == "ci@local.iam.gserviceaccount.com"
    assert credential["token_uri"] == URI


def test_private_key_is_in_the_credential_alone_which_others_cannot_read(file: Path, out: Path) -> None:
    result = added(file, out)

    private = json.loads(out.read_text())["private_key"]
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "PRIVATE" not in file.read_text()
    assert private.splitlines()[1] not in result.output


def test_credential_is_never_written_over_and_nobody_is_registered_then(file: Path, out: Path) -> None:
    out.write_text("precious")

    assert refusal(added(file, out)).field == "out"

    assert out.read_text() == "precious"
    assert not file.exists()


def test_no_credential_is_left_of_an_account_that_was_refused(file: Path, out: Path, tmp_path: Path) -> None:
    added(file, out)
    second = tmp_path / "second.json"

    assert refusal(added(file, second)).field == "name"
    assert refusal(added(file, second, "--verb", "aiplatform.endpoint.deploy", name="b")).field == "verb"
    assert refusal(added(file, second, "--action", "everything", name="c")).field == "actions"

    assert not second.exists()
    assert [each.name for each in keys.load(file).everybody] == ["ci"]


@pytest.mark.parametrize(
    "uri",
    ["", "node1:8443/token", "http://node1:8443/token", "https://node1:8443/", "https:///token", "ftp://a/token"],
)
def test_token_uri_that_would_not_work_or_not_be_safe_is_refused(file: Path, out: Path, uri: str) -> None:
    result = run("add-service-account", "ci", "--keys", file, "--out", out, "--token-uri", uri)

    assert refusal(result).field == "token-uri"
    assert not out.exists()


def test_token_uri_may_be_plain_on_this_machine(file: Path, out: Path) -> None:
    uri = "http://127.0.0.1:8080/token"

    assert run("add-service-account", "ci", "--keys", file, "--out", out, "--token-uri", uri).exit_code == 0


def certificate_of(private: rsa.RSAPrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ci")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, private.public_key(), 1, now, now + timedelta(days=1))
    return made.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("form", ["key", "certificate"])
def test_account_that_exists_is_registered_by_its_public_key(file: Path, tmp_path: Path, form: str) -> None:
    private = serialization.load_pem_private_key(pair(0).private_pem.encode(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    pem = tmp_path / "public.pem"
    pem.write_text(pair(0).public_pem if form == "key" else certificate_of(private))
    email = "ci@hospital.iam.gserviceaccount.com"
    credential = tmp_path / "own.json"
    credential.write_text(json.dumps({
        "type": "service_account", "private_key_id": "k1", "private_key": pair(0).private_pem,
        "client_email": email, "token_uri": URI,
    }))  # fmt: skip

    result = run(
        "add-service-account", "ci", "--keys", file, "--public-key", pem, "--key-id", "k1", "--email", email
    )

    assert result.exit_code == 0
    assert KeyRing(file=file).identify(token_of(credential)).name == "ci"


def pem_of(key: Any) -> str:
    data: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data.decode()


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        ("", "no public key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no public key"),
        (pair(0).private_pem, "private key"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "RSA"),
        (pem_of(rsa.generate_private_key(65537, 1024)), "2048"),
        (pem_of(rsa.generate_private_key(3, 2048)), "65537"),
    ],
    ids=["empty", "garbage", "garbled certificate", "private", "elliptic", "short", "exponent"],
)
def test_key_that_must_not_be_trusted_is_refused(file: Path, tmp_path: Path, pem: str, said: str) -> None:
    given = tmp_path / "public.pem"
    given.write_text(pem)

    result = run("add-service-account", "ci", "--keys", file, "--public-key", given, "--key-id", "k1")

    assert said in refusal(result).message
    assert not file.exists()


def test_options_of_the_two_ways_are_not_mixed(file: Path, out: Path, tmp_path: Path) -> None:
    given = tmp_path / "public.pem"
    given.write_text(pair(0).public_pem)

    assert refusal(run("add-service-account", "ci", "--keys", file)).field == "out"
    assert refusal(run("add-service-account", "ci", "--keys", file, "--public-key", given)).field == "public-key"
    assert refusal(added(file, out, "--public-key", given, "--key-id", "k1")).field == "public-key"
    assert refusal(added(file, out, "--key-id", "k1")).field == "out"
    missing = run(
        "add-service-account", "ci", "--keys", file, "--public-key", tmp_path / "no.pem", "--key-id", "k"
    )
    assert refusal(missing).field == "public-key"


def test_list_shows_accounts_without_their_keys_and_revoke_takes_them_away(file: Path, out: Path) -> None:
    added(file, out, "--verb", "aiplatform.models.upload", "--rate", "60/min")
    run("add", "gateway", "--keys", file)
    token = token_of(out)

    listed = run("list", "--keys", file).stdout
    as_json = json.loads(run("list", "--keys", file, "--json").stdout)
    assert KeyRing(file=file).identify(token).name == "ci"
    run("revoke", "ci", "--keys", file)

    for part in ("gateway", "ci@local.iam.gserviceaccount.com", "aiplatform.models.upload", "60/min"):
        assert part in listed
    (account,) = as_json["service_accounts"]
    assert (account["actions"], account["expired"]) == ([], False)
    assert [each.name for each in keys.load(file).everybody] == ["gateway"]
    with pytest.raises(AuthError):
        KeyRing(file=file).identify(token)


def test_email_and_key_id_are_one_accounts(file: Path) -> None:
    pem = pair(0).public_pem
    keys.add_account(file, "a", email="a@p.example", key_id="k1", pem=pem)

    for email, key_id, field in (("a@p.example", "k2", "email"), ("b@p.example", "k1", "key-id")):
        with pytest.raises(ConfigError) as refused:
            keys.add_account(file, "b", email=email, key_id=key_id, pem=pem)
        assert refused.value.field == field


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"email": "no address"}, "email"),
        ({"public_keys": []}, "public_keys"),
        ({"public_keys": [{"id": "k1", "pem": "x"}]}, "public_keys.0.pem"),
        ({"public_keys": [{"id": "a~b", "pem": pair(0).public_pem}]}, "public_keys.0.id"),
        ({"verbs": ["aiplatform.*"]}, "verbs"),
        ({"verbs": ["deploy"]}, "verbs"),
        ({"name": "gateway"}, "same name"),
        ({"name": "root"}, "root"),
        ({"sha256": "0" * 64}, "sha256"),
    ],
)
def test_file_with_an_account_of_another_form_is_refused_by_the_field(
    file: Path, change: dict[str, Any], said: str
) -> None:
    keys.add(file, "gateway")
    keys.add_account(file, "a", email="a@p.example", key_id="k1", pem=pair(0).public_pem)
    held = json.loads(file.read_text())
    held["service_accounts"][0] |= change
    file.write_text(json.dumps(held))

    with pytest.raises(ConfigError, match=said):
        keys.load(file)


def test_two_accounts_with_one_key_id_are_refused(file: Path) -> None:
    keys.add_account(file, "a", email="a@p.example", key_id="k1", pem=pair(0).public_pem)
    keys.add_account(file, "b", email="b@p.example", key_id="k2", pem=pair(1).public_pem)
    file.write_text(file.read_text().replace('"k2"', '"k1"'))

    with pytest.raises(ConfigError, match="public key's id"):
        keys.load(file)


def test_file_of_accounts_alone_counts_as_keys_in_force(file: Path) -> None:
    keys.add_account(file, "a", email="a@p.example", key_id="k1", pem=pair(0).public_pem)

    assert key_files.api_keys(file, datetime.now(UTC)) == "1 of 1 API keys in force"


def test_key_with_a_verb_alone_has_no_action(file: Path) -> None:
    key = run("add", "gw", "--keys", file, "--verb", "aiplatform.endpoints.*").stdout.strip()

    principal = KeyRing(file=file).identify(key)

    assert (principal.actions, principal.verbs) == (frozenset(), ("aiplatform.endpoints.*",))
