"""Cloud Storage, against the real emulator; and what a hostile one could try."""

from __future__ import annotations

import gzip
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.faults import Answer, FaultServer, json_answer
from support.gcs import Emulator, gcs_emulator

from medport.errors import ConfigError
from medport_local.serving.fetch import Fetcher, FetchError

MakeFetcher = Callable[..., Fetcher]
KIB = 1024


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    with gcs_emulator("scans", "private", "results") as emulator:
        yield emulator


@pytest.fixture
def bucket(shared: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", shared.url)
    return shared


@pytest.fixture
def hostile(web: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A server in the place of Cloud Storage that answers as told."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{web.port}")
    return web


def about(web: FaultServer, **properties: object) -> Answer:
    link = f"http://127.0.0.1:{web.port}/download/storage/v1/b/scans/o/a?generation=7&alt=media"
    return json_answer(
        {
            "kind": "storage#object",
            "name": "a",
            "bucket": "scans",
            "generation": "7",
            "mediaLink": link,
            **properties,
        }
    )


@pytest.mark.parametrize("name", ["a.png", "a b/ç?x#y%2e.png", "sub/folder/片.png"])
def test_an_object_of_an_allowed_bucket_comes_as_it_is(
    make_fetcher: MakeFetcher, bucket: Emulator, name: str
) -> None:
    data = bytes(range(256)) * 100
    bucket.upload("scans", name, data)

    assert make_fetcher("gs://scans").gcs(f"gs://scans/{name}", field="gcs_uri") == data


def test_an_object_of_another_bucket_is_refused(make_fetcher: MakeFetcher, bucket: Emulator) -> None:
    bucket.upload("private", "a.png", b"secret")

    with pytest.raises(FetchError, match="allow-list") as caught:
        make_fetcher("gs://scans", "images.org").gcs("gs://private/a.png", field="gcs_uri")

    assert caught.value.code == "UNHANDLED_GCS_FILE_ERROR"
    assert caught.value.field == "gcs_uri"
    assert "--allow-fetch gs://private" in (caught.value.remedy or "")
    assert "a.png" not in str(caught.value)


def test_an_object_outside_an_allowed_prefix_is_refused(make_fetcher: MakeFetcher, bucket: Emulator) -> None:
    bucket.upload("scans", "open/a.png", b"pixels")
    bucket.upload("scans", "openly/a.png", b"secret")
    fetcher = make_fetcher("gs://scans/open")

    assert fetcher.gcs("gs://scans/open/a.png", field="f") == b"pixels"
    with pytest.raises(FetchError, match="allow-list"):
        fetcher.gcs("gs://scans/openly/a.png", field="f")


@pytest.mark.parametrize(
    "uri",
    [
        "gs://scans", "gs://scans/", "gs://scans/..", "gs://scans/.", "gs://scans/../private/a.png",
        "gs://scans/a/../../private/o/a.png", "gs:///a.png", "gs://", "gs://SCANS/a.png", "gs://scans@private/a.png",
        "gs://scans:80/a.png", "gs://scans%2fo/a.png", "gs://scans?x/a.png", "gs://scans/a\r\nb", "gs://scans/a\0b",
        "gs://scans/" + "a" * 1025, "https://scans/a.png", "file:///etc/passwd", "data:,x", "gs:scans/a.png", "",
    ],
)  # fmt: skip
def test_an_address_that_is_none_of_an_object_is_refused(
    make_fetcher: MakeFetcher, hostile: FaultServer, uri: str
) -> None:
    with pytest.raises(FetchError) as caught:
        make_fetcher("gs://scans", "scans").gcs(uri, field="f")

    assert caught.value.code == "UNHANDLED_GCS_FILE_ERROR"
    assert hostile.seen == []


def test_a_missing_object_and_a_missing_bucket_are_told_alike(make_fetcher: MakeFetcher, bucket: Emulator) -> None:
    fetcher = make_fetcher("gs://scans", "gs://nowhere")

    for uri in ("gs://scans/canary-name", "gs://nowhere/canary-name"):
        with pytest.raises(FetchError, match="no such object") as caught:
            fetcher.gcs(uri, field="f")
        assert "canary" not in str(caught.value)
        assert caught.value.code == "UNHANDLED_GCS_FILE_ERROR"


def test_an_object_larger_than_the_limit_is_refused_by_its_announced_size(
    make_fetcher: MakeFetcher, hostile: FaultServer
) -> None:
    hostile.routes["/b/scans/o/a?projection=noAcl&prettyPrint=false"] = about(hostile, size=str(1 << 40))

    with pytest.raises(FetchError, match="larger than"):
        make_fetcher("gs://scans", max_bytes=64 * KIB).gcs("gs://scans/a", field="f")

    assert len(hostile.seen) == 1


def test_an_object_larger_than_it_said_ends_at_the_limit(make_fetcher: MakeFetcher, hostile: FaultServer) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 8192

    def answer(seen: object) -> Answer:
        return Answer(200, endless()) if "alt=media" in str(seen) else about(hostile, size="10")

    hostile.routes[""] = answer

    with pytest.raises(FetchError, match="larger than"):
        make_fetcher("gs://scans", max_bytes=64 * KIB).gcs("gs://scans/a", field="f")


def test_a_packed_object_is_refused_before_it_is_loaded(make_fetcher: MakeFetcher, bucket: Emulator) -> None:
    bucket.upload("scans", "packed", gzip.compress(b"\0" * 5_000_000), content_encoding="gzip")

    with pytest.raises(FetchError, match="packed"):
        make_fetcher("gs://scans", max_bytes=64 * KIB).gcs("gs://scans/packed", field="f")


def test_the_generation_that_was_looked_up_is_the_one_that_is_read(
    make_fetcher: MakeFetcher, hostile: FaultServer
) -> None:
    def answer(seen: object) -> Answer:
        return Answer(200, b"pixels") if "alt=media" in str(seen) else about(hostile, size="6")

    hostile.routes[""] = answer

    make_fetcher("gs://scans").gcs("gs://scans/a", field="f")

    assert "generation=7" in hostile.seen[-1].path


def test_damaged_bytes_are_not_taken(make_fetcher: MakeFetcher, hostile: FaultServer) -> None:
    def answer(seen: object) -> Answer:
        if "alt=media" in str(seen):
            return Answer(200, b"changed", {"x-goog-hash": "crc32c=AAAAAA==,md5=XUFAKrxLKna5cZ2REBfFkg=="})
        return about(hostile, size="7")

    hostile.routes[""] = answer

    with pytest.raises(FetchError) as caught:
        make_fetcher("gs://scans").gcs("gs://scans/a", field="f")

    assert caught.value.code == "HTTP_ERROR"


def test_neither_a_redirect_nor_a_download_link_leads_elsewhere(
    make_fetcher: MakeFetcher, hostile: FaultServer
) -> None:
    with FaultServer() as inside:
        elsewhere = f"http://127.0.0.1:{inside.port}/inside"
        inside.routes[""] = Answer(200, b"secret")
        fetcher = make_fetcher("gs://scans", "127.0.0.1")

        def links(seen: object) -> Answer:
            return (
                Answer(200, b"pixels")
                if "alt=media" in str(seen)
                else about(hostile, size="6", mediaLink=elsewhere, selfLink=elsewhere)
            )

        hostile.routes[""] = links
        assert fetcher.gcs("gs://scans/a", field="f") == b"pixels"
        hostile.routes[""] = Answer(307, b"", {"location": elsewhere})
        with pytest.raises(FetchError, match="redirects"):
            fetcher.gcs("gs://scans/a", field="f")

        assert inside.seen == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "INVALID_CREDENTIALS_ERROR"), (403, "INVALID_CREDENTIALS_ERROR"), (400, "HTTP_ERROR")],
)
def test_a_refusal_of_the_service_has_its_code(
    make_fetcher: MakeFetcher, hostile: FaultServer, status: int, code: str
) -> None:
    hostile.routes[""] = json_answer(
        {"error": {"code": status, "message": "canary@account has no access"}}, status
    )

    with pytest.raises(FetchError, match=str(status)) as caught:
        make_fetcher("gs://scans").gcs("gs://scans/a", credential="token", field="f")

    assert caught.value.code == code
    assert "canary" not in str(caught.value)


def test_retries_end_at_the_deadline(make_fetcher: MakeFetcher, hostile: FaultServer) -> None:
    hostile.routes[""] = json_answer({"error": {"code": 503, "message": "x"}}, 503)
    began = time.monotonic()

    with pytest.raises(FetchError) as caught:
        make_fetcher("gs://scans", timeout_s=0.5).gcs("gs://scans/a", field="f")

    assert caught.value.code == "HTTP_ERROR"
    assert time.monotonic() - began < 5


def test_a_service_that_hangs_ends_at_the_deadline(make_fetcher: MakeFetcher, hostile: FaultServer) -> None:
    hostile.routes[""] = Answer(hangs=True)

    with pytest.raises(FetchError, match="too long"):
        make_fetcher("gs://scans").gcs("gs://scans/a", field="f", deadline=time.monotonic() + 0.3)


def test_a_token_goes_along_and_none_does_without(make_fetcher: MakeFetcher, hostile: FaultServer) -> None:
    def answer(seen: object) -> Answer:
        return Answer(200, b"pixels") if "alt=media" in str(seen) else about(hostile, size="6")

    hostile.routes[""] = answer
    fetcher = make_fetcher("gs://scans")

    fetcher.gcs("gs://scans/a", credential="token", field="f")
    assert [seen.headers.get("authorization") for seen in hostile.seen] == ["Bearer token"] * 2
    hostile.seen.clear()
    for credential in (None, "", "application_default"):  # an emulator gets nothing of the server's own
        fetcher.gcs("gs://scans/a", credential=credential, field="f")
    assert all("authorization" not in seen.headers for seen in hostile.seen)


def test_what_is_no_token_is_refused(make_fetcher: MakeFetcher, hostile: FaultServer) -> None:
    with pytest.raises(FetchError) as caught:
        make_fetcher("gs://scans").gcs("gs://scans/a", credential="x\r\ny: z", field="f")

    assert caught.value.code == "INVALID_CREDENTIALS_ERROR"
    assert hostile.seen == []


def test_the_service_itself_is_dialled_at_public_addresses_only(make_fetcher: MakeFetcher) -> None:
    inside = {"storage.googleapis.com": ["127.0.0.1"]}

    with pytest.raises(FetchError, match="does not dial"):
        make_fetcher("gs://scans", names=inside).gcs("gs://scans/a", field="f")


def test_an_entry_may_give_the_service_an_address_inside(make_fetcher: MakeFetcher) -> None:
    inside = {"storage.googleapis.com": ["127.0.0.9"]}
    fetcher = make_fetcher("gs://scans", "storage.googleapis.com=127.0.0.0/8", names=inside)

    with pytest.raises(FetchError, match="cannot be reached"):  # dialled, and nobody is there
        fetcher.gcs("gs://scans/a", field="f")


def test_a_server_without_credentials_of_its_own_says_so(
    make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/canary.json")

    with pytest.raises(FetchError, match="own credentials") as caught:
        make_fetcher("gs://scans").gcs("gs://scans/a", credential="application_default", field="f")

    assert caught.value.code == "INVALID_CREDENTIALS_ERROR"
    assert "canary" not in str(caught.value)


def test_an_emulator_that_has_no_address_is_a_setting_at_fault(
    make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:9000")

    with pytest.raises(ConfigError, match="STORAGE_EMULATOR_HOST"):
        make_fetcher("gs://scans").gcs("gs://scans/a", field="f")


# Batch jobs


def test_results_are_written_and_listed(make_fetcher: MakeFetcher, bucket: Emulator) -> None:
    fetcher = make_fetcher("gs://results")
    large = b"line\n" * 2_000_000  # above 8 MiB google-cloud-storage sends in pieces

    fetcher.gcs_write("gs://results/job/1.jsonl", b"small", field="output")
    fetcher.gcs_write("gs://results/job/2.jsonl", large, field="output")
    fetcher.gcs_write("gs://results/job/3.jsonl", io.BytesIO(b"from a file"), field="output")

    assert bucket.download("results", "job/1.jsonl") == b"small"
    assert bucket.download("results", "job/2.jsonl") == large
    assert bucket.download("results", "job/3.jsonl") == b"from a file"
    listed = fetcher.gcs_list("gs://results/job/", field="output")
    assert listed == [f"gs://results/job/{number}.jsonl" for number in (1, 2, 3)]


def test_writing_and_listing_outside_the_allow_list_is_refused(
    make_fetcher: MakeFetcher, bucket: Emulator
) -> None:
    bucket.upload("results", "mine/a", b"")
    bucket.upload("results", "mineral/a", b"")
    fetcher = make_fetcher("gs://results/mine")

    with pytest.raises(FetchError, match="allow-list"):
        fetcher.gcs_write("gs://results/yours", b"x", field="output")
    for prefix in ("gs://results/", "gs://results", "gs://private/", "gs://results/m"):
        with pytest.raises(FetchError, match="allow-list"):
            fetcher.gcs_list(prefix, field="output")
    assert fetcher.gcs_list("gs://results/mine", field="output") == ["gs://results/mine/a"]
    assert "yours" not in bucket.names("results")


def test_an_upload_is_not_led_elsewhere(make_fetcher: MakeFetcher, hostile: FaultServer) -> None:
    with FaultServer() as inside:
        inside.routes[""] = Answer(200, b"{}")
        hostile.routes[""] = Answer(200, b"{}", {"location": f"http://127.0.0.1:{inside.port}/upload"})

        with pytest.raises(FetchError, match="not the server"):
            make_fetcher("gs://results").gcs_write("gs://results/a", b"x" * 9_000_000, field="output")

        assert inside.seen == []


# Silence


def test_nothing_of_an_object_reaches_logs_errors_or_other_threads(
    make_fetcher: MakeFetcher, bucket: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.upload("scans", "canary-name", b"pixels")
    fetcher = make_fetcher("gs://scans")
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    threads = {thread.name for thread in threading.enumerate()}

    fetcher.gcs("gs://scans/canary-name", credential="canary-token", field="f")
    with pytest.raises(FetchError) as caught:
        fetcher.gcs("gs://scans/canary-missing", field="f")

    assert caplog.text == ""
    assert "canary" not in f"{caught.value!r} {caught.value}"
    assert all("medport-dns" in thread.name for thread in threading.enumerate() if thread.name not in threads)
