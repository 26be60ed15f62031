"""What all tests share: a clean environment, and one certificate authority."""

from __future__ import annotations

import gc
import os
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.certificates import Authority
from support.running import LoopThread
from support.vertex import Account

_PREFIXES = ("MEDPORT_", "GOOGLE_", "CLOUDSDK_")
_NAMES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "NO_COLOR"}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Import without looking for garbage, and never look through what was imported: a third less to do."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting, proxy or credential of whoever runs the tests reaches them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_PREFIXES) or name.upper() in _NAMES:
                patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("no-config")))
        patch.setenv("NO_GCE_CHECK", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def default_trust_is_read_once() -> Iterator[None]:
    """Each ``httpx.Client`` reads the certificates of all public authorities again, 50 ms of a processor, also for
    ``http://`` addresses. Those who bring a trust of their own get it."""
    make = httpx.create_ssl_context
    default = make()

    def made(verify: ssl.SSLContext | str | bool = True, **more: Any) -> ssl.SSLContext:
        elsewhere = {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys()
        if verify is True and not more.get("cert") and not elsewhere:
            return default
        return make(verify=verify, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", made)
        yield


@pytest.fixture(autouse=True)
def same_environment_afterwards() -> Iterator[None]:
    """What a test sets in the environment ends with it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def account() -> Account:
    """A Google service account with a fresh key."""
    return Account()


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()
