"""A certificate authority of the test's own, and what it signed."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """PEM files of one server."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Authority:
    """Issues certificates; ``ca_file`` is what clients are given to trust."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)

    def issue(self, *names: str) -> Certificate:
        """A certificate for host names and addresses."""
        leaf = self._ca.issue_cert(*names)
        stem = "-".join(names)
        files = Certificate(self._folder / f"{stem}.pem", self._folder / f"{stem}.key")
        with files.certificate.open("wb") as chain:
            for pem in leaf.cert_chain_pems:
                chain.write(pem.bytes())
        leaf.private_key_pem.write_to_path(files.key)
        return files
