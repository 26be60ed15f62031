"""Serve the stand-in on a unix socket: ``python -m support.provider SCHEMA SOCKET``."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from . import wire
from .servicer import Servicer


def main(schema_file: str, socket: str) -> None:
    """Serve on a unix socket and print the value of ``TF_REATTACH_PROVIDERS``."""
    limit = 256 << 20
    options = [("grpc.max_send_message_length", limit), ("grpc.max_receive_message_length", limit)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers(tuple(wire.handlers(Servicer(Path(schema_file)).answer)))
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    # Test: terraform must not end the process.
    where = {"Network": "unix", "String": socket}
    value = {"Protocol": "grpc", "ProtocolVersion": 6, "Pid": os.getpid(), "Test": True, "Addr": where}
    print(json.dumps({"hashicorp/google": value}), flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
