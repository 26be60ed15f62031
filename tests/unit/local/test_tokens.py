"""Tokens of service accounts: who signed, for whom, for how long; forged, foreign and revoked ones."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import string
from datetime import date
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.service_accounts import API, CLOUD_PLATFORM, GOOGLE_TOKENS, ServiceAccount, encoded, pair, registered

from medport.errors import AuthError, Forbidden
from medport_local.serving import accounts, keys, tokens
from medport_local.serving.keyring import KeyRing

NOW = 1_795_000_000.0
HERE = "node1.hospital.example:8443"


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def account(file: Path) -> ServiceAccount:
    return registered(file, now=NOW, actions=["deploy"], models=["chest"], rate="60/min", concurrent=2)


@pytest.fixture
def ring(account: ServiceAccount, file: Path, clock: Clock) -> KeyRing:
    return KeyRing(file=file, hosts=[HERE], clock=clock, monotonic=clock)


def test_account_is_the_same_principal_by_either_kind_of_token(ring: KeyRing, account: ServiceAccount) -> None:
    signed, granted = ring.identify(account.token()), ring.identify(ring.grant(account.assertion()))

    assert signed == granted
    assert (signed.name, signed.actions, signed.models) == ("ci", {"deploy"}, {"chest"})
    assert signed.rate is not None
    assert signed.concurrent == 2


def test_account_and_api_key_live_in_one_file(
    ring: KeyRing, account: ServiceAccount, file: Path, clock: Clock
) -> None:
    key = keys.add(file, "gateway")
    clock.now += 2

    assert ring.identify(key).name == "gateway"
    assert ring.identify(account.token()).name == "ci"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": API},
        {"aud": "https://aiplatform.googleapis.com"},
        {"aud": "https://europe-west4-aiplatform.googleapis.com/"},
        {"aud": f"https://{HERE}/"},
        {"aud": f"https://{HERE.upper()}/v1/projects/local"},
        {"aud": ["https://storage.googleapis.com/", API]},
        {"aud": None, "scope": CLOUD_PLATFORM},
        {"aud": None, "scope": f"email {CLOUD_PLATFORM}"},
        {"iat": NOW + 9, "exp": NOW + 3609},
        {"iat": NOW - 3605, "exp": NOW - 5},
        {"iat": NOW, "exp": NOW + 3600, "nbf": NOW + 9},
        {"iat": NOW - 0.5, "exp": NOW + 60.5},
        {"jti": "1", "email": "x"},
    ],
)
def test_token_for_this_server_in_its_hour_is_taken(
    ring: KeyRing, account: ServiceAccount, claims: dict[str, Any]
) -> None:
    assert ring.identify(account.token(**claims)).name == "ci"


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"aud": "https://storage.googleapis.com/"}, "another service"),
        ({"aud": "https://aiplatform.googleapis.com.evil.example/"}, "another service"),
        ({"aud": "https://evil.example/?https://aiplatform.googleapis.com/"}, "another service"),
        ({"aud": "https://node1.hospital.example/"}, "another service"),
        ({"aud": f"https://evil@{HERE}/"}, "another service"),
        ({"aud": "https://[::1"}, "another service"),
        ({"aud": ""}, "another service"),
        ({"aud": GOOGLE_TOKENS, "scope": CLOUD_PLATFORM}, "another service"),
        ({"aud": []}, "neither an audience nor a scope"),
        ({"aud": None}, "neither an audience nor a scope"),
        ({"aud": 7}, "aud"),
        ({"aud": {"a": 1}}, "aud"),
        ({"iat": NOW + 11, "exp": NOW + 3600}, "short-lived"),
        ({"iat": NOW - 3700, "exp": NOW - 11}, "short-lived"),
        ({"iat": NOW, "exp": NOW + 3611}, "short-lived"),
        ({"iat": NOW, "exp": NOW}, "short-lived"),
        ({"iat": NOW - 60, "exp": NOW - 120}, "short-lived"),
        ({"nbf": NOW + 60}, "short-lived"),
        ({"iat": None}, "iat"),
        ({"exp": None}, "exp"),
        ({"exp": "9999999999"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": 10**400}, "exp|Signature"),
        ({"iat": -1}, "iat"),
        ({"iss": None}, "iss"),
        ({"iss": "root@local.iam.gserviceaccount.com"}, "Signature"),
        ({"iss": ["ci@local.iam.gserviceaccount.com"]}, "iss"),
        ({"sub": "somebody@else.example"}, "iss and sub"),
        ({"sub": None}, "iss and sub"),
    ],
)
def test_token_for_another_time_place_or_person_is_refused(
    ring: KeyRing, account: ServiceAccount, claims: dict[str, Any], said: str
) -> None:
    with pytest.raises(AuthError, match=said) as refused:
        ring.identify(account.token(**claims))
    assert not isinstance(refused.value, Forbidden)


def test_good_token_with_the_scopes_of_another_service_is_forbidden(
    ring: KeyRing, account: ServiceAccount
) -> None:
    with pytest.raises(Forbidden, match="insufficient authentication scopes"):
        ring.identify(account.token(aud=None, scope="https://www.googleapis.com/auth/devstorage.read_only"))


def forged_without_algorithm(account: ServiceAccount) -> str:
    _, claims, signature = account.token().split(".")
    return f"{encoded({'alg': 'none', 'kid': account.pair.id})}.{claims}.{signature}"


def forged_with_the_public_key_as_a_secret(account: ServiceAccount) -> str:
    claims = account.token().split(".")[1]
    said = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': account.pair.id})}.{claims}"
    digest = hmac.digest(account.pair.public_pem.encode(), said.encode(), hashlib.sha256)
    return f"{said}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def signed_by_another(account: ServiceAccount) -> str:
    return ServiceAccount(account.email, account.now, pair(1)).token(headers={"kid": account.pair.id})


def by_an_unknown_key(account: ServiceAccount) -> str:
    return ServiceAccount(account.email, account.now, pair(1)).token()


def with_its_own_key_inside(account: ServiceAccount) -> str:
    inside = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(accounts.public_key(pair(1).public_pem)))
    return ServiceAccount(account.email, account.now, pair(1)).token(
        headers={"kid": account.pair.id, "jwk": inside}
    )


def changed_after_signing(account: ServiceAccount) -> str:
    head, claims, signature = account.token().split(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return f"{head}.{encoded({**said, 'exp': NOW + 3000})}.{signature}"


def with_another_algorithm_of_the_same_key(account: ServiceAccount) -> str:
    claims = {"iss": account.email, "sub": account.email, "aud": API, "iat": NOW, "exp": NOW + 60}
    return jwt.encode(claims, account.pair.private_pem, "RS512", headers={"kid": account.pair.id})


def with_a_critical_extension(account: ServiceAccount) -> str:
    return account.token(headers={"crit": ["exp2"], "exp2": 1})


def without_a_key_id(account: ServiceAccount) -> str:
    return account.signed(f"{encoded({'alg': 'RS256'})}.{account.token().split('.')[1]}")


def with_a_list_as_key_id(account: ServiceAccount) -> str:
    return account.signed(f"{encoded({'alg': 'RS256', 'kid': [account.pair.id]})}.{account.token().split('.')[1]}")


def with_a_head_that_never_ends(account: ServiceAccount) -> str:
    deep = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    return account.signed(f"{deep}.{account.token().split('.')[1]}")


def too_long(account: ServiceAccount) -> str:
    return account.token(padding="x" * 1_000_000)


FORGERIES = [
    forged_without_algorithm, forged_with_the_public_key_as_a_secret, signed_by_another, by_an_unknown_key,
    with_its_own_key_inside, changed_after_signing, with_another_algorithm_of_the_same_key,
    with_a_critical_extension, without_a_key_id, with_a_list_as_key_id, with_a_head_that_never_ends, too_long,
]  # fmt: skip


@pytest.mark.parametrize("forge", FORGERIES)
def test_forged_token_is_refused_as_bearer_and_as_assertion(
    ring: KeyRing, account: ServiceAccount, forge: Any
) -> None:
    token = forge(account)

    for way in (ring.identify, ring.grant):
        with pytest.raises(AuthError) as refused:
            way(token)
        assert not isinstance(refused.value, Forbidden)
        assert token[:40] not in str(refused.value)


def test_unknown_account_and_forged_signature_get_one_answer(ring: KeyRing, account: ServiceAccount) -> None:
    said = set()
    for token in (by_an_unknown_key(account), signed_by_another(account), account.token(iss="a@b.example")):
        with pytest.raises(AuthError) as refused:
            ring.identify(token)
        said.add(str(refused.value))

    assert len(said) == 1


@pytest.mark.parametrize("kind", ["signed", "granted"])
def test_token_of_a_revoked_account_is_refused_within_a_second(
    ring: KeyRing, account: ServiceAccount, file: Path, clock: Clock, kind: str
) -> None:
    token = account.token() if kind == "signed" else ring.grant(account.assertion())
    assert ring.identify(token).name == "ci"

    keys.revoke(file, "ci")
    clock.now += 1.1

    with pytest.raises(AuthError):
        ring.identify(token)


@pytest.mark.parametrize("kind", ["signed", "granted"])
def test_token_dies_with_its_key_although_the_account_gets_another_under_the_same_id(
    ring: KeyRing, account: ServiceAccount, file: Path, clock: Clock, kind: str
) -> None:
    token = account.token() if kind == "signed" else ring.grant(account.assertion())
    ring.identify(token)

    keys.revoke(file, "ci")
    keys.add_account(file, "ci", email=account.email, key_id=account.pair.id, pem=pair(1).public_pem)
    clock.now += 1.1

    with pytest.raises(AuthError):
        ring.identify(token)


@pytest.mark.parametrize("kind", ["signed", "granted"])
def test_token_is_good_for_its_hour_even_once_it_was_checked(
    ring: KeyRing, account: ServiceAccount, clock: Clock, kind: str
) -> None:
    token = account.token() if kind == "signed" else ring.grant(account.assertion())

    clock.now = NOW + 3590
    assert ring.identify(token).name == "ci"
    clock.now = NOW + 3611

    with pytest.raises(AuthError):
        ring.identify(token)


@pytest.mark.parametrize("kind", ["signed", "granted"])
def test_account_that_expires_takes_its_tokens_along(file: Path, clock: Clock, kind: str) -> None:
    clock.now = 1_798_761_600.0 - 60  # a minute before 2027
    account = registered(file, now=clock.now, expires=date(2027, 1, 1))
    ring = KeyRing(file=file, clock=clock, monotonic=clock)
    token = account.token() if kind == "signed" else ring.grant(account.assertion())
    ring.identify(token)

    clock.now += 61

    with pytest.raises(AuthError, match="expired"):
        ring.identify(token)
    with pytest.raises(AuthError, match="expired"):
        ring.grant(ServiceAccount(account.email, clock.now).assertion())


def test_change_of_what_an_account_may_do_holds_for_tokens_that_are_out(
    ring: KeyRing, account: ServiceAccount, file: Path, clock: Clock
) -> None:
    token = ring.grant(account.assertion())
    held = json.loads(file.read_text())
    held["service_accounts"][0]["actions"] = ["read"]

    file.write_text(json.dumps(held))
    clock.now += 1.1

    assert ring.identify(token).actions == {"read"}


def test_access_token_of_another_process_is_refused(ring: KeyRing, account: ServiceAccount, file: Path) -> None:
    restarted = KeyRing(file=file, clock=Clock(NOW))

    with pytest.raises(AuthError):
        restarted.identify(ring.grant(account.assertion()))


@pytest.mark.parametrize("part", range(4))
def test_access_token_with_any_part_changed_is_refused(ring: KeyRing, account: ServiceAccount, part: int) -> None:
    parts = ring.grant(account.assertion()).removeprefix("mpt_").split("~")
    changed = str(int(parts[1]) + 1) if part == 1 else parts[part][:-2] + "".join(reversed(parts[part][-2:])) + "A"
    parts[part] = changed[: len(parts[part])] if part != 0 else pair(1).id

    with pytest.raises(AuthError):
        ring.identify("mpt_" + "~".join(parts))


def test_every_grant_gives_another_token(ring: KeyRing, account: ServiceAccount) -> None:
    assertion = account.assertion()

    assert len({ring.grant(assertion) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"aud": API}, "invalid_grant"),
        ({"aud": None}, "invalid_grant"),
        ({"aud": f"https://{HERE}/other"}, "invalid_grant"),
        ({"aud": "https://evil.example/token"}, "invalid_grant"),
        ({"iat": NOW - 7200, "exp": NOW - 3600}, "invalid_grant"),
        ({"iat": NOW + 7200, "exp": NOW + 9000}, "invalid_grant"),
        ({"scope": None}, "invalid_scope"),
        ({"scope": ""}, "invalid_scope"),
        ({"scope": "https://www.googleapis.com/auth/devstorage.read_only"}, "invalid_scope"),
        ({"scope": None, "target_audience": "https://service.example"}, "invalid_scope"),
        ({"sub": "doctor@hospital.example"}, "unauthorized_client"),
    ],
)
def test_assertion_for_something_else_is_refused_by_oauths_name_for_it(
    ring: KeyRing, account: ServiceAccount, claims: dict[str, Any], code: str
) -> None:
    with pytest.raises(tokens.BadToken) as refused:
        ring.grant(account.assertion(**claims))

    assert refused.value.code == code


def test_assertion_may_be_for_google_or_for_this_server(ring: KeyRing, account: ServiceAccount) -> None:
    for aud in (GOOGLE_TOKENS, f"https://{HERE}/token"):
        assert ring.identify(ring.grant(account.assertion(aud=aud))).name == "ci"


def test_many_tokens_do_not_fill_the_memory_and_each_is_still_taken(
    ring: KeyRing, account: ServiceAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_VERIFIED", 8)
    many = [account.token(jti=str(i)) for i in range(20)]

    for token in (*many, *many):
        assert ring.identify(token).name == "ci"

    assert len(ring._tokens._verified) == 8


def test_server_without_keys_takes_any_token_and_gives_one(account: ServiceAccount) -> None:
    ring = KeyRing()

    assert ring.identify(ring.grant("anything")).name == "-"
    assert ring.identify(account.token()).name == "-"


# Base64's letters and the separators of both kinds of token, so that most texts get past the first look.
_LIKELY = st.text(alphabet=string.ascii_letters + string.digits + "-_.~", max_size=200)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    text=st.one_of(
        st.text(max_size=200),
        _LIKELY,
        st.builds(lambda a, b, c: f"{a}.{b}.{c}", _LIKELY, _LIKELY, _LIKELY),
        st.builds(
            lambda head, claims, signature: f"{encoded(head)}.{encoded(claims)}.{signature}",
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)
                         | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), inner)),
            st.dictionaries(st.sampled_from(["iss", "aud", "exp"]), st.text() | st.integers()),
            st.text(alphabet="abcDEF123-_", min_size=1, max_size=40),
        ),
        st.builds(lambda a, b, c, d: f"mpt_{a}~{b}~{c}~{d}", _LIKELY, st.integers(0), _LIKELY, _LIKELY),
    )
)  # fmt: skip
def test_text_that_nobody_signed_is_refused_and_breaks_nothing(ring: KeyRing, text: str) -> None:
    for way in (ring.identify, ring.grant):
        with pytest.raises(AuthError) as refused:
            way(text)
        assert not isinstance(refused.value, Forbidden)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_signed_token_with_one_letter_changed_is_refused(
    ring: KeyRing, account: ServiceAccount, data: st.DataObject
) -> None:
    token = account.token()
    # The last letter of base64 has bits that stand for nothing.
    place = data.draw(st.integers(0, len(token) - 2))
    letter = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_"))
    if token[place] == letter or token[place + 1 : place + 2] == ".":
        return

    with pytest.raises(AuthError):
        ring.identify(token[:place] + letter + token[place + 1 :])
