"""Keys, certificates and hand-made tars, to write bundles that are as they should be, and bundles that are not."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medport import lock as locks
from medport.lock import Lock
from medport_local.bundle import keys
from medport_local.bundle.manifest import MANIFEST, SIGNATURE, BundleManifest, Entry, in_order
from medport_local.bundle.signing import Signer, Verifier
from medport_local.bundle.tar_header import END, header, padding
from medport_local.bundle.writing import Item, Meta
from medport_local.snapshot import Manifest
from medport_local.store import Record, Terms

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
META = Meta(created_at=NOW, medport="0.1.0")
_YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Keys:
    """A key pair, and both sides of it."""

    private: Path
    public: Path
    signer: Signer
    verifier: Verifier

    @classmethod
    def make(cls, folder: Path) -> Keys:
        private, public = folder / "key.pem", folder / "pub.pem"
        keys.make(private, public)
        return cls(private, public, Signer(private), Verifier(key=public))


class Certifier:
    """A certificate authority that can certify badly."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "Root",
        above: Certifier | None = None,
        valid: tuple[datetime, datetime] = (NOW - 2 * _YEAR, NOW + 2 * _YEAR),
        extended: Sequence[x509.ObjectIdentifier] = (),
    ) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._above = above
        self._name = _name(name)
        signer, issuer = (above._key, above._name) if above else (self._key, self._name)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=True, path_length=None), True)
        ]
        if extended:
            extensions.append((x509.ExtendedKeyUsage(extended), True))
        self.certificate = _build(self._name, issuer, self._key.public_key(), signer, valid, extensions)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def certify(
        self,
        name: str,
        *,
        valid: tuple[datetime, datetime] = (NOW - _YEAR, NOW + _YEAR),
        signature: bool | None = True,
        extended: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CODE_SIGNING,
        password: bytes | None = None,
        curve: ec.EllipticCurve | None = None,
    ) -> tuple[Path, Path]:
        """Files with a private key, and its certificate with those above but for the root."""
        key = ec.generate_private_key(curve or ec.SECP256R1())
        extensions: list[tuple[x509.ExtensionType, bool]] = []
        if signature is not None:
            extensions.append((_usage(signature), True))
        if extended is not None:
            extensions.append((x509.ExtendedKeyUsage([extended]), False))
        leaf = _build(_name(name), self._name, key.public_key(), self._key, valid, extensions)
        chain = [leaf] + ([self.certificate] if self._above else [])
        certificate = self._folder / f"{name}-chain.pem"
        certificate.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain))
        return write_key(self._folder / f"{name}-key.pem", key, password), certificate


def write_key(file: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> Path:
    """A private key in PKCS #8."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return file


def entry(path: str, data: bytes, kind: str = "document") -> Entry:
    """The listed form of a member."""
    return Entry(path=path, kind=kind, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))  # type: ignore[arg-type]


def manifest_of(entries: Sequence[Entry], signer: Signer | None = None) -> BundleManifest:
    """A manifest that nobody checked."""
    return BundleManifest(
        created_at=META.created_at,
        medport=META.medport,
        lock_id=META.lock_id,
        signed_by=signer.names if signer else (),
        entries=tuple(in_order(list(entries))),
    )


def member(path: str, data: bytes) -> bytes:
    """A member as medport writes it."""
    return header(path, len(data)) + data + padding(len(data))


def raw(info: tarfile.TarInfo, data: bytes = b"", form: int = tarfile.PAX_FORMAT) -> bytes:
    """A member as ``tarfile`` writes it."""
    return info.tobuf(form, "utf-8", "surrogateescape") + data + padding(len(data))


def info(path: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    """A tar header with some fields set."""
    made = tarfile.TarInfo(path)
    made.size, made.mode = size, 0o644
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def forged(
    file: Path, manifest: BundleManifest | bytes, body: bytes, signer: Signer | None, end: bytes = END
) -> Path:
    """A bundle whose manifest is truly signed, followed by whatever bytes."""
    data = manifest if isinstance(manifest, bytes) else manifest.to_bytes()
    signed = member(SIGNATURE, signer.sign(data)) if signer else b""
    file.write_bytes(member(MANIFEST, data) + signed + body + end)
    return file


def tar_of(names: Sequence[str]) -> bytes:
    """An ordinary tar with empty files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature, content_commitment=False, key_encipherment=not signature,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _build(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime],
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())


def snapshot_items(directory: Path) -> list[Item]:
    """The members that bring a model directory with a ``manifest.json``."""
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
    record = Record(
        source="hub",
        requested=f"{manifest.repo_id}@main",
        revision=manifest.revision,
        added_at=NOW,
        by="exporter",
        terms=Terms(name="HAI-DEF", accepted_by="site"),
    )
    folder = f"snapshots/{manifest.snapshot_sha256}"
    return [
        Item(f"{folder}/manifest.json", "snapshot", (directory / "manifest.json").read_bytes()),
        Item(f"{folder}/record.json", "snapshot", record.model_dump_json().encode()),
        *(
            Item(f"blobs/{file.sha256}", "blob", directory / name, file.sha256)
            for name, file in manifest.files.items()
        ),
    ]


def lock_of(*directories: Path) -> Lock:
    """A lock for model directories."""
    models = {}
    for directory in directories:
        manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
        models[manifest.family] = {
            "model_id": manifest.repo_id,
            "revision": manifest.revision,
            "snapshot_sha256": manifest.snapshot_sha256,
            "family": manifest.family,
            "files": {name: file.model_dump() for name, file in manifest.files.items()},
        }
    return locks.checked({"version": 1, "models": models})


def wheel(name: str = "example", release: str = "1.0") -> bytes:
    """A wheel that pip installs, with one module."""
    info = f"{name}-{release}.dist-info"
    files = {
        f"{name}.py": f"NAME = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, text in (*files.items(), (f"{info}/RECORD", record)):
            archive.writestr(zipfile.ZipInfo(path), text)  # a fixed date
    return out.getvalue()
