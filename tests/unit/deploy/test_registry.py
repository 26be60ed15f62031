"""Images are resolved against a real HTTP server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.registry_server import INDEX, MANIFEST, TOKEN, Answer, RegistryServer, registry_server

from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    NotFound,
    PolicyError,
    ProtocolError,
    QuotaExceeded,
    ServerError,
    Unsupported,
    VerificationError,
)
from medport_deploy.lock.registry import Registry
from medport_deploy.lock.registry_auth import Credential, from_docker_config, from_environment

PASSWORD = "p4ssw0rd-canary"


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as started:
        yield started


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def registry(slept: list[float]) -> Iterator[Registry]:
    asked = Registry(sleep=slept.append)
    yield asked
    asked.close()


def status(code: int, **headers: str) -> object:
    def change(answer: Answer) -> None:
        answer.status, answer.body = code, b"{}"
        answer.headers.update({name.replace("_", "-"): value for name, value in headers.items()})

    return change


def test_a_tag_becomes_the_digest_of_its_bytes(server: RegistryServer, registry: Registry) -> None:
    digest = server.push("team/serving", "1.0")

    found = registry.resolve(f"{server.host}/team/serving:1.0")

    assert (found.repository, found.digest, found.platform_digest) == (
        f"{server.host}/team/serving",
        digest,
        digest,
    )
    assert (found.tag, found.size_bytes) == ("1.0", 1024)


def test_an_index_gives_its_own_digest_and_that_of_linux_amd64(server: RegistryServer, registry: Registry) -> None:
    arm, amd = server.push("serving", "arm", layers=(1,)), server.push("serving", "amd", layers=(7,))
    digest = server.push_index("serving", "1.0", {"linux/arm64": arm, "linux/amd64": amd})

    found = registry.resolve(f"{server.host}/serving:1.0")

    assert (found.digest, found.platform_digest, found.size_bytes) == (digest, amd, 7)


def test_an_image_for_other_platforms_alone_is_refused(server: RegistryServer, registry: Registry) -> None:
    server.push_index("serving", "1.0", {"linux/arm64": server.push("serving", "arm")})

    with pytest.raises(Unsupported, match="not made for linux/amd64"):
        registry.resolve(f"{server.host}/serving:1.0")


def test_the_digest_is_not_taken_from_the_header(server: RegistryServer, registry: Registry) -> None:
    server.push("serving", "1.0")
    server.changes.append(lambda answer: answer.headers.update({"Docker-Content-Digest": f"sha256:{'e' * 64}"}))

    with pytest.raises(VerificationError, match=r"sha256:e{64} it states"):
        registry.resolve(f"{server.host}/serving:1.0")


def test_other_bytes_than_the_digest_asked_for_are_refused(server: RegistryServer, registry: Registry) -> None:
    digest = server.push("serving", "1.0")

    def tampered(answer: Answer) -> None:
        answer.body += b" "
        del answer.headers["Docker-Content-Digest"]

    server.changes.append(tampered)

    with pytest.raises(VerificationError, match="was asked for"):
        registry.resolve(f"{server.host}/serving@{digest}")


def test_a_digest_wins_over_the_tag_beside_it(server: RegistryServer, registry: Registry) -> None:
    digest = server.push("serving", "1.0")
    server.push("serving", "2.0", layers=(5,))

    assert registry.resolve(f"{server.host}/serving:2.0@{digest}").digest == digest


def test_an_image_without_tag_and_digest_is_refused_and_nobody_asked(
    server: RegistryServer, registry: Registry
) -> None:
    with pytest.raises(ConfigError, match="neither tag nor digest"):
        registry.resolve(f"{server.host}/serving")
    assert server.requests == []


def test_a_bearer_challenge_is_answered_with_a_token_for_reading_that_repository(
    server: RegistryServer, registry: Registry
) -> None:
    digest = server.push("team/serving", "1.0")
    server.challenge = "Bearer"

    assert registry.resolve(f"{server.host}/team/serving:1.0").digest == digest
    token = next(each for each in server.requests if each.path == "/token")
    assert token.query == {"scope": ["repository:team/serving:pull"], "service": ["registry"]}
    assert "authorization" not in token.headers


def test_a_token_is_used_again_for_the_same_repository(server: RegistryServer, registry: Registry) -> None:
    amd = server.push("serving", "amd")
    server.push_index("serving", "1.0", {"linux/amd64": amd})
    server.challenge = "Bearer"

    registry.resolve(f"{server.host}/serving:1.0")

    assert server.asked().count("/token") == 1


@pytest.mark.parametrize("challenge", ["Bearer", "Basic"])
def test_a_password_reaches_the_registry_and_no_error_or_repr(server: RegistryServer, challenge: str) -> None:
    digest = server.push("serving", "1.0")
    server.challenge, server.users = challenge, {"me": PASSWORD}
    credential = Credential("me", PASSWORD)
    registry = Registry(credentials=lambda host: credential if host == server.host else None)

    assert registry.resolve(f"{server.host}/serving:1.0").digest == digest
    server.users = {"me": "another"}
    again = Registry(credentials=lambda host: credential)
    with pytest.raises(AuthError) as caught:
        again.resolve(f"{server.host}/serving:1.0")
    assert PASSWORD not in str(caught.value) + repr(credential) + repr(again._tokens)
    registry.close()
    again.close()


def test_a_credential_does_not_go_to_a_token_server_of_another_domain(server: RegistryServer) -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        if request.url.host == "tokens.example.net":
            return httpx.Response(200, json={"token": TOKEN})
        if "authorization" in request.headers:
            return httpx.Response(200, json={"layers": []}, headers={"content-type": MANIFEST})
        said = 'Bearer realm="https://tokens.example.net/t",service="r"'
        return httpx.Response(401, headers={"www-authenticate": said})

    registry = Registry(transport=httpx.MockTransport(answer), credentials=lambda host: Credential("me", PASSWORD))
    registry.resolve("registry.example.org/serving:1")

    assert [each.url.host for each in sent] == [
        "registry.example.org",
        "tokens.example.net",
        "registry.example.org",
    ]
    assert "authorization" not in sent[1].headers
    assert sent[2].headers["authorization"] == f"Bearer {TOKEN}"


def test_a_token_server_over_plain_http_is_not_asked(server: RegistryServer) -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.host)
        return httpx.Response(401, headers={"www-authenticate": 'Bearer realm="http://registry.example.org/t"'})

    registry = Registry(transport=httpx.MockTransport(answer))

    with pytest.raises(PolicyError, match="plain http"):
        registry.resolve("registry.example.org/serving:1")
    assert sent == ["registry.example.org"]


@pytest.mark.parametrize("plain", [False, True])
def test_plain_http_to_another_machine_is_tried_only_where_it_is_allowed(plain: bool) -> None:
    sent: list[tuple[str, bool]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.scheme, "authorization" in request.headers))
        if request.url.scheme == "https":
            raise httpx.ConnectError("no TLS here")
        return httpx.Response(401, headers={"www-authenticate": 'Basic realm="r"'})

    registry = Registry(
        transport=httpx.MockTransport(answer),
        plain=plain,
        sleep=lambda _: None,
        credentials=lambda host: Credential("me", PASSWORD),
    )

    with pytest.raises(AuthError if plain else ConnectionFailed):
        registry.resolve("mirror.example.org:5000/serving:1")
    assert ("http" in {scheme for scheme, _ in sent}) is plain
    assert not any(credential for _, credential in sent)


def test_an_unknown_tag_is_not_found_and_says_what_to_check(server: RegistryServer, registry: Registry) -> None:
    server.push("serving", "1.0")

    with pytest.raises(NotFound, match=r"models\.a\.image: there is no such image"):
        registry.resolve(f"{server.host}/serving:9", field="models.a.image")


@pytest.mark.parametrize(("code", "error"), [(429, QuotaExceeded), (503, ServerError)])
def test_a_busy_registry_is_asked_again_and_after_four_times_said_to_be_busy(
    server: RegistryServer, registry: Registry, slept: list[float], code: int, error: type[Exception]
) -> None:
    digest = server.push("serving", "1.0")
    server.changes += [status(code, Retry_After="7"), status(code)]  # type: ignore[list-item]

    assert registry.resolve(f"{server.host}/serving:1.0").digest == digest
    assert slept[0] >= 7
    server.changes += [status(code)] * 4  # type: ignore[list-item]
    with pytest.raises(error):
        registry.resolve(f"{server.host}/serving:1.0")


def test_a_redirect_is_not_followed(server: RegistryServer, registry: Registry) -> None:
    server.push("serving", "1.0")
    server.changes.append(status(302, Location=f"http://{server.host}/elsewhere"))  # type: ignore[arg-type]

    with pytest.raises(ProtocolError, match="kept elsewhere"):
        registry.resolve(f"{server.host}/serving:1.0")
    assert "/elsewhere" not in server.asked()


def test_what_is_no_manifest_or_too_large_is_refused(server: RegistryServer, registry: Registry) -> None:
    server.manifests["serving", "page"] = (b"<html>", "text/html")
    server.manifests["serving", "large"] = (b" " * (4 * 2**20 + 1), MANIFEST)
    server.put("serving", "old", {"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+json")

    with pytest.raises(ProtocolError, match="no manifest"):
        registry.resolve(f"{server.host}/serving:page")
    with pytest.raises(ProtocolError, match="more than 4 MiB"):
        registry.resolve(f"{server.host}/serving:large")
    with pytest.raises(Unsupported, match="of the kind"):
        registry.resolve(f"{server.host}/serving:old")


@pytest.mark.parametrize(
    "said", [{"mediaType": INDEX, "layers": []}, {"mediaType": MANIFEST, "layers": [], "manifests": []}]
)
def test_a_manifest_of_two_kinds_is_refused(
    server: RegistryServer, registry: Registry, said: dict[str, object]
) -> None:
    server.put("serving", "both", said, MANIFEST)

    with pytest.raises(ProtocolError, match="two kinds at once"):
        registry.resolve(f"{server.host}/serving:both")


def test_a_token_that_came_over_tls_is_not_sent_in_clear() -> None:
    sent: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.scheme, request.headers.get("authorization")))
        if request.url.path == "/t":
            return httpx.Response(200, json={"token": TOKEN})
        if "authorization" not in request.headers:
            return httpx.Response(401, headers={"www-authenticate": 'Bearer realm="https://r.example.org/t"'})
        if len(sent) > 3:
            raise httpx.ConnectError("TLS is gone")
        return httpx.Response(200, json={"layers": []}, headers={"content-type": MANIFEST})

    registry = Registry(transport=httpx.MockTransport(answer), plain=True, sleep=lambda _: None)
    registry.resolve("r.example.org/serving:1")
    with pytest.raises(ConnectionFailed):
        registry.resolve("r.example.org/serving:1")

    assert ("http", None) in sent
    assert ("http", f"Bearer {TOKEN}") not in sent[: sent.index(("http", None)) + 1]


def test_an_index_whose_image_is_gone_is_not_found(server: RegistryServer, registry: Registry) -> None:
    server.push_index("serving", "1.0", {"linux/amd64": f"sha256:{'a' * 64}"})

    with pytest.raises(NotFound):
        registry.resolve(f"{server.host}/serving:1.0")
    assert server.manifests["serving", "1.0"][1] == INDEX


def test_a_registry_that_is_down_is_a_failed_connection(registry: Registry) -> None:
    with registry_server() as gone:
        host = gone.host

    with pytest.raises(ConnectionFailed, match="--offline"):
        registry.resolve(f"{host}/serving:1.0")


def test_what_docker_login_wrote_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    auth = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    file.write_text(json.dumps({"auths": {"registry.example.org": {"auth": auth}, "other.example.org": {}}}))

    given = from_docker_config(file)

    assert given("registry.example.org") == Credential("me", PASSWORD)
    assert given("other.example.org") is None
    assert from_docker_config(tmp_path / "absent")("registry.example.org") is None
    file.write_text("[]")
    with pytest.raises(ConfigError, match="docker login"):
        from_docker_config(file)


@pytest.fixture
def account(server: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's default credential, and nothing of docker's."""
    said = {
        "type": "authorized_user",
        "client_id": "me",
        "client_secret": PASSWORD,
        "refresh_token": PASSWORD,
        "token_uri": f"http://{server.host}/oauth",
    }
    file = tmp_path / "adc.json"
    file.write_text(json.dumps(said))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    # The refresh of a user's credential has its address built in.
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"http://{server.host}/oauth")


@pytest.mark.usefixtures("account")
def test_googles_credential_is_for_googles_registries_alone(server: RegistryServer) -> None:
    given = from_environment()

    assert given("europe-docker.pkg.dev") == Credential("oauth2accesstoken", TOKEN)
    assert given("pkg.dev.example.org") is None
    assert given("registry.example.org") is None
    assert server.asked() == ["/oauth"]


@pytest.mark.usefixtures("account")
def test_an_expired_credential_of_googles_says_how_to_renew_it(server: RegistryServer) -> None:
    server.signs_in = False

    with pytest.raises(AuthError, match="gcloud auth application-default login") as caught:
        from_environment()("europe-docker.pkg.dev")
    assert PASSWORD not in str(caught.value)


@pytest.mark.usefixtures("account")
def test_what_docker_login_keeps_comes_before_googles_credential(server: RegistryServer, tmp_path: Path) -> None:
    auth = base64.b64encode(b"me:mine").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"europe-docker.pkg.dev": {"auth": auth}}}))

    assert from_environment()("europe-docker.pkg.dev") == Credential("me", "mine")
    assert server.requests == []
