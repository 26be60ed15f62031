"""The private authority for sites that have none."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from medport.errors import ConfigError
from medport_local.tls import self_signed


def test_keys_are_the_owners_alone_and_names_are_covered(tmp_path: Path) -> None:
    made = self_signed(tmp_path / "tls", "gpu01.hospital.example")

    for name in ("ca-key.pem", "server-key.pem"):
        assert stat.S_IMODE((tmp_path / "tls" / name).stat().st_mode) == 0o600
    cert = x509.load_pem_x509_certificate(made.tls.certificate.read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"gpu01.hospital.example", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {str(each) for each in names.get_values_for_type(x509.IPAddress)} >= {"127.0.0.1", "::1"}
    ssl.create_default_context(cafile=made.ca)  # refuses a file without a usable authority


def test_second_start_uses_the_same_files(tmp_path: Path) -> None:
    first = self_signed(tmp_path, "localhost")
    before = [path.read_bytes() for path in (first.ca, first.tls.certificate, first.tls.key)]

    again = self_signed(tmp_path, "localhost")

    assert [path.read_bytes() for path in (again.ca, again.tls.certificate, again.tls.key)] == before


def test_new_host_renews_the_certificate_under_the_same_authority(tmp_path: Path) -> None:
    first = self_signed(tmp_path, "one.example")
    ca, leaf = first.ca.read_bytes(), first.tls.certificate.read_bytes()

    second = self_signed(tmp_path, "two.example")

    assert second.ca.read_bytes() == ca
    assert second.tls.certificate.read_bytes() != leaf


def test_broken_files_are_made_anew(tmp_path: Path) -> None:
    made = self_signed(tmp_path, "localhost")
    made.tls.key.write_text("nonsense")

    self_signed(tmp_path, "localhost")

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(made.tls.certificate, made.tls.key)


def test_directory_that_cannot_be_made_is_a_setting_at_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="certificate directory"):
        self_signed(tmp_path / "file" / "x", "localhost")
