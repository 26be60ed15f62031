"""Attack 1: headers and spellings that would go around the door."""

from __future__ import annotations

import socket

import httpx
import pytest
from support.door_handlers import url


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer ' OR 1=1 --"},
        {"Authorization": "Bearer"},
        {"Host": "x/health?x="},
        {"Host": "health", "X-Original-URL": "/health", "X-Rewrite-URL": "/health"},
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"},
        {"x-api-key": "root"},
        {"Cookie": "key=root"},
    ],
)
def test_attack_1_no_header_opens_a_door(address: tuple[str, int], headers: dict[str, str]) -> None:
    answer = httpx.get(f"{url(address)}/list", headers=headers)

    assert answer.status_code == 401
    assert answer.json()["error"]["status"] == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "path", ["/health/../list", "//list", "/list/", "/LIST", "/health%2f..%2flist", "/list;x=/health"]
)
def test_attack_1_no_spelling_of_a_path_goes_around_the_door(address: tuple[str, int], path: str) -> None:
    with socket.create_connection(address, timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        status = raw.recv(4096).split(b" ")[1]
    assert status in (b"401", b"404")


def test_attack_1_redirects_follow_no_host_header(address: tuple[str, int]) -> None:
    # Of the whole app: the router would answer 307 to http://evil/list.
    from medport_local import app

    made = app.create_app(app.Settings(api_key="k" * 20))
    assert made.router.redirect_slashes is False
