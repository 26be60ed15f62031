"""DICOMweb, against a real store on a real socket; and addresses and answers made to harm."""

from __future__ import annotations

import gzip
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from pydicom import dcmread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from support.certificates import Authority
from support.dicomweb import DicomStore, multipart, pydicom_file, slices
from support.faults import FaultServer, json_answer
from support.vertex import Account

from medport_local.serving.fetch import Fetcher, FetchError

MakeFetcher = Callable[..., Fetcher]
KIB = 1024
INSTANCE = "/studies/1.2/series/1.3/instances/1.4"


@pytest.fixture
def store() -> DicomStore:
    return DicomStore()


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "MR_small_bigendian.dcm"]
)
def test_an_instance_comes_byte_for_byte_in_its_own_transfer_syntax(
    make_fetcher: MakeFetcher, store: DicomStore, name: str
) -> None:
    store.add(pydicom_file(name))

    with store.serving() as base:
        data = make_fetcher(base).dicom_instance(base + store.paths[0], field="dicomweb_uri")

    assert data == pydicom_file(name)
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert store.asked[0].headers["accept"] == accept
    assert store.asked[0].headers["accept-encoding"] == "identity"


def test_a_series_comes_whole_and_as_the_store_orders_it(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    made = slices(12)
    series = store.add(*made)
    store.add(pydicom_file("MR_small.dcm"))

    with store.serving() as base:
        found = make_fetcher(base).dicom_series(base + series, field="f")

    assert found == made
    assert all(type(one) is bytes for one in found)


def test_a_store_over_tls_is_verified(make_fetcher: MakeFetcher, store: DicomStore, authority: Authority) -> None:
    store.add(pydicom_file("CT_small.dcm"))
    names = {"pacs.hospital": ["127.0.0.1"], "other.hospital": ["127.0.0.1"]}

    with store.serving(authority.issue("pacs.hospital"), host="pacs.hospital") as base:
        fetcher = make_fetcher(f"{base}=127.0.0.1", names=names)
        assert fetcher.dicom_instance(base + store.paths[0], field="f")
        other = base.replace("pacs.", "other.")
        with pytest.raises(FetchError, match="not trusted"):
            make_fetcher(f"{other}=127.0.0.1", names=names).dicom_instance(other + store.paths[0], field="f")


def test_a_store_on_ipv6_is_reached(make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher("http://[::1]:9/dicomWeb")

    with pytest.raises(FetchError, match="cannot be reached"):
        fetcher.dicom_instance(f"http://[::1]:9/dicomWeb{INSTANCE}", field="f")


# Addresses


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/studies/1.2", "/studies/1.2/series", "/studies/1.2/series/1.3/",
        "/studies/1.2/series/1.3/instances", f"{INSTANCE}/", f"{INSTANCE}/frames/1", f"{INSTANCE}/rendered",
        f"{INSTANCE}/metadata", f"{INSTANCE}?x=1", f"{INSTANCE}?", f"{INSTANCE}#x", f"{INSTANCE};x",
        f"/..{INSTANCE}", f"/.{INSTANCE}", f"/%2e%2e{INSTANCE}", f"/%2E%2E/other{INSTANCE}",
        f"/..%2fother{INSTANCE}", f"//evil.org{INSTANCE}", f"/https://evil.org{INSTANCE}",
        f"@evil.org{INSTANCE}", f"\\..{INSTANCE}", "/studies/1.2/series/../series/1.3", "/studies/a/series/b",
        "/studies/1.2/series/1.3%2finstances/1.4", "/studies/1..2/series/1.3", "/studies/1.2/series/.1",
        "/studies/1.2/series/" + "1" * 65, "/studies/1.2/series/1.3\r\n", "/studies/１.2/series/1.3",
    ],
)  # fmt: skip
def test_a_path_that_is_not_one_of_a_series_or_instance_is_refused(
    make_fetcher: MakeFetcher, store: DicomStore, path: str
) -> None:
    with store.serving() as base:
        fetcher = make_fetcher(base)
        for fetch in (fetcher.dicom_instance, fetcher.dicom_series):
            with pytest.raises(FetchError) as caught:
                fetch(base + path, field="dicomweb_uri")
            assert caught.value.code in ("DICOM_PATH_ERROR", "UNAPPROVED_DICOM_STORE_ERROR")

    assert caught.value.code == "DICOM_PATH_ERROR"
    assert store.asked == []


def test_a_series_is_no_instance_and_an_instance_no_series(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    series = store.add(pydicom_file("CT_small.dcm"))

    with store.serving() as base:
        fetcher = make_fetcher(base)
        with pytest.raises(FetchError) as caught:
            fetcher.dicom_instance(base + series, field="f")
        assert caught.value.code == "DICOM_PATH_ERROR"
        with pytest.raises(FetchError) as caught:
            fetcher.dicom_series(base + store.paths[0], field="f")
        assert caught.value.code == "DICOM_PATH_ERROR"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://127.0.0.1:1/dicomWeb{INSTANCE}",
        f"https://evil.org/dicomWeb{INSTANCE}",
        f"https://pacs.org.evil.org/dicomWeb{INSTANCE}",
        f"https://pacs.org/other/dicomWeb{INSTANCE}",
        f"https://pacs.org/dicomWebs{INSTANCE}",
        f"https://pacs.org:8443/dicomWeb{INSTANCE}",
        f"http://pacs.org/dicomWeb{INSTANCE}",
        f"https://pacs.org{INSTANCE}",
        f"https://169.254.169.254/dicomWeb{INSTANCE}",
    ],
)
def test_another_store_is_not_approved(make_fetcher: MakeFetcher, uri: str) -> None:
    fetcher = make_fetcher("https://pacs.org/dicomWeb", names={})

    with pytest.raises(FetchError) as caught:
        fetcher.dicom_instance(uri, field="dicomweb_uri")

    assert caught.value.code == "UNAPPROVED_DICOM_STORE_ERROR"
    assert caught.value.field == "dicomweb_uri"
    assert "1.4" not in str(caught.value)


def test_an_approved_store_with_an_address_inside_is_not_dialled(make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher("https://pacs.org/dicomWeb", names={"pacs.org": ["93.184.216.34", "10.0.0.1"]})

    with pytest.raises(FetchError, match="does not dial") as caught:
        fetcher.dicom_instance(f"https://pacs.org/dicomWeb{INSTANCE}", field="f")

    assert caught.value.code == "UNAPPROVED_DICOM_STORE_ERROR"


def test_a_redirect_of_a_store_is_not_followed(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    store.add(pydicom_file("CT_small.dcm"))
    other = DicomStore()
    other.add(pydicom_file("CT_small.dcm"))

    with store.serving() as base, other.serving() as elsewhere:
        store.answer = lambda _: RedirectResponse(elsewhere + other.paths[0])
        with pytest.raises(FetchError, match="redirects"):
            make_fetcher("127.0.0.1").dicom_instance(base + store.paths[0], field="f")

    assert other.asked == []


# Credentials


def test_a_token_opens_a_store_that_wants_one(make_fetcher: MakeFetcher) -> None:
    store = DicomStore(token="good.token")
    store.add(pydicom_file("CT_small.dcm"))

    with store.serving() as base:
        fetcher = make_fetcher(base)
        assert fetcher.dicom_instance(base + store.paths[0], credential="good.token", field="f")
        for wrong in (None, "bad.token"):
            with pytest.raises(FetchError) as caught:
                fetcher.dicom_instance(base + store.paths[0], credential=wrong, field="f")
            assert caught.value.code == "INVALID_CREDENTIALS_ERROR"
            assert "bad.token" not in str(caught.value)


def test_no_credential_is_sent_over_plain_http_across_a_network(make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher("http://pacs/dicomWeb=10.0.0.0/8", names={"pacs": ["10.0.0.1"]})

    for credential in ("token", "application_default"):
        with pytest.raises(FetchError, match="plain http") as caught:
            fetcher.dicom_instance(f"http://pacs/dicomWeb{INSTANCE}", credential=credential, field="f")
        assert caught.value.code == "INVALID_CREDENTIALS_ERROR"


def test_the_servers_own_credentials_are_only_for_stores_that_are_named(
    make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    uri = f"https://pacs.org/dicomWeb{INSTANCE}"

    with pytest.raises(FetchError, match="only for stores"):
        make_fetcher("pacs.org").dicom_instance(uri, credential="application_default", field="f")
    with pytest.raises(FetchError, match="cannot be had"):  # named, so it would have been sent
        make_fetcher("https://pacs.org/dicomWeb").dicom_instance(uri, credential="application_default", field="f")


def test_the_servers_own_credentials_are_got_once_and_for_reading_dicom_only(
    make_fetcher: MakeFetcher,
    authority: Authority,
    account: Account,
    web: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web.routes["/token"] = json_answer({"access_token": "own.token", "expires_in": 3600, "token_type": "Bearer"})
    key = account.write(tmp_path, f"{web.url}/token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    store = DicomStore(token="own.token")
    store.add(pydicom_file("CT_small.dcm"))

    with store.serving(authority.issue("127.0.0.1")) as base:
        fetcher = make_fetcher(base)
        for _ in range(2):
            assert fetcher.dicom_instance(base + store.paths[0], credential="application_default", field="f")

    (asked,) = web.seen
    claims = account.verified(parse_qs(asked.body.decode())["assertion"][0])
    assert claims["scope"] == "https://www.googleapis.com/auth/cloud-healthcare"


def test_proxies_and_netrc_of_the_environment_are_not_used(
    make_fetcher: MakeFetcher, store: DicomStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(pydicom_file("CT_small.dcm"))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    with store.serving() as base:
        assert make_fetcher(base).dicom_instance(base + store.paths[0], field="f")

    assert "authorization" not in store.asked[0].headers


# Answers


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Response(b"<html>log in</html>", media_type="text/html"), id="a page"),
        pytest.param(Response(b"", media_type="multipart/related; boundary=x"), id="empty"),
        pytest.param(Response(b"x"), id="no type"),
        pytest.param(Response(b"--x\r\nno head", media_type="multipart/related; boundary=x"), id="no head"),
        pytest.param(Response(b"junk", media_type="multipart/related"), id="no boundary"),
        pytest.param(multipart([b"not a DICOM file" * 20]), id="not DICOM"),
        pytest.param(multipart([b""]), id="an empty part"),
        pytest.param(multipart([pydicom_file("CT_small.dcm")] * 2), id="two objects for one"),
    ],
)
def test_an_answer_without_the_object_is_a_dicom_error(
    make_fetcher: MakeFetcher, store: DicomStore, answer: Response
) -> None:
    store.answer = lambda _: answer

    with store.serving() as base, pytest.raises(FetchError) as caught:
        make_fetcher(base).dicom_instance(base + INSTANCE, field="f")

    assert caught.value.code == "DICOM_ERROR"


@pytest.mark.parametrize("status", [404, 500, 503, 429, 406, 204])
def test_a_status_that_is_not_a_success_is_an_http_error_and_not_repeated(
    make_fetcher: MakeFetcher, store: DicomStore, status: int
) -> None:
    store.answer = lambda _: Response(b"", status_code=status, headers={"Retry-After": "100"})

    with store.serving() as base, pytest.raises(FetchError) as caught:
        make_fetcher(base).dicom_instance(base + INSTANCE, field="f")

    assert caught.value.code == ("DICOM_ERROR" if status == 204 else "HTTP_ERROR")
    assert len(store.asked) == 1


def test_a_packed_answer_is_refused(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    store.answer = lambda _: Response(
        gzip.compress(b"\0" * 20_000_000),
        headers={"content-encoding": "gzip", "content-type": "multipart/related; boundary=x"},
    )

    with store.serving() as base, pytest.raises(FetchError, match="packed"):
        make_fetcher(base).dicom_instance(base + INSTANCE, field="f")


def endless(piece: bytes) -> Callable[[Request], Response]:
    def answer(_: Request) -> Response:
        def body() -> Iterator[bytes]:
            yield b"--x\r\n\r\n"
            yield from itertools.repeat(piece)

        return StreamingResponse(body(), media_type='multipart/related; type="application/dicom"; boundary=x')

    return answer


def test_an_endless_object_ends_at_the_limit(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    store.answer = endless(b"x" * 8192)

    with store.serving() as base:
        with pytest.raises(FetchError, match="larger than"):
            make_fetcher(base, max_bytes=256 * KIB).dicom_instance(base + INSTANCE, field="f")
        with pytest.raises(FetchError, match="larger than"):
            make_fetcher(base, max_series_bytes=256 * KIB).dicom_series(base + "/studies/1/series/2", field="f")


def test_an_endless_series_ends_at_the_number_of_objects(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    store.answer = endless(pydicom_file("CT_small.dcm") + b"\r\n--x\r\n\r\n")

    with store.serving() as base, pytest.raises(FetchError, match="more than 20 objects"):
        make_fetcher(base, max_instances=20).dicom_series(base + "/studies/1/series/2", field="f")


def test_limits_hold_for_each_object_and_for_all(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    made = slices(5)
    series = store.add(*made)
    one, every = len(made[0]), sum(map(len, made))

    with store.serving() as base:
        assert make_fetcher(base, max_instances=5).dicom_series(base + series, field="f") == made
        assert make_fetcher(base, max_bytes=one, max_series_bytes=every + KIB).dicom_series(
            base + series, field="f"
        )
        for tight in ({"max_instances": 4}, {"max_bytes": one - 1}, {"max_series_bytes": every - 1}):
            with pytest.raises(FetchError):
                make_fetcher(base, **tight).dicom_series(base + series, field="f")


def test_a_deflated_object_is_not_inflated_here(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    deflated = pydicom_file("image_dfl.dcm")
    store.add(deflated)

    with store.serving() as base:
        data = make_fetcher(base, max_bytes=len(deflated) + KIB).dicom_instance(base + store.paths[0], field="f")

    assert data == deflated
    assert len(dcmread(BytesIO(data)).PixelData) > len(deflated)


def test_a_store_that_drips_ends_at_the_deadline(make_fetcher: MakeFetcher, store: DicomStore) -> None:
    stop = threading.Event()

    def drip(_: Request) -> Response:
        def body() -> Iterator[bytes]:
            while not stop.wait(0.05):
                yield b"x"

        return StreamingResponse(body(), media_type="multipart/related; boundary=x")

    store.answer = drip
    with store.serving() as base:
        fetcher = make_fetcher(base)
        with pytest.raises(FetchError, match="too long"):
            fetcher.dicom_instance(base + INSTANCE, field="f", deadline=time.monotonic() + 0.4)
        stop.set()


def test_nothing_of_an_address_or_answer_reaches_logs_or_errors(
    make_fetcher: MakeFetcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = DicomStore(token="canary-token")
    store.add(pydicom_file("CT_small.dcm"))
    uids = set(store.paths[0].split("/")) - {"", "studies", "series", "instances"}

    with store.serving() as base:
        fetcher = make_fetcher(base)
        fetcher.dicom_instance(base + store.paths[0], credential="canary-token", field="f")
        store.answer = lambda _: Response(
            b"canary-body", status_code=500, headers={"Warning": "299 canary-warning", "X-Canary": "canary-header"}
        )
        with pytest.raises(FetchError) as caught:
            fetcher.dicom_instance(base + store.paths[0], credential="canary-token", field="f")

    ours = [record for record in caplog.records if not record.name.startswith(("asyncio", "uvicorn"))]
    said = " ".join(record.getMessage() for record in ours) + f"{caught.value!r} {caught.value}"
    assert "canary" not in said
    assert not any(uid in said for uid in uids)
