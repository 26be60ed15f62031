"""The bill of materials of a bundle, in CycloneDX 1.6 JSON: packages, models, images, providers.

Needs the extra ``bundle``. Source: ECMA-424 (CycloneDX 1.6); package URLs: ECMA-427 (``pypi``, ``oci``,
``huggingface``, ``generic``).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.bom_ref import BomRef
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import fixup_id, is_expression
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from medport_local.bundle.providers import Archive
from medport_local.bundle.wheels import Wheel
from medport_local.snapshot_file import FileEntry

_PREFIX = "medport:"
_NAMESPACE = uuid.UUID("6f0c4c62-5d0e-5f5e-9d2b-0b8f5a3c9f11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the bill says about a snapshot."""

    model_id: str
    revision: str | None
    snapshot_sha256: str
    files: Mapping[str, FileEntry]
    terms: str | None = None
    """Their name."""
    terms_url: str | None = None
    from_hub: bool = False
    """Whether it was fetched from the hub: a package URL says where a thing can be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Materials:
    """What a bundle is made of."""

    medport_version: str
    created_at: datetime
    wheels: Sequence[tuple[Wheel, str]] = ()
    """Each with the sha256 of its file."""
    models: Sequence[Model] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    """Digest (``sha256:…``) by name."""
    archives: Sequence[Archive] = ()


def bill_of(materials: Materials) -> bytes:
    """The bill. Equal materials give equal bytes: its serial number is made from what stands in it."""
    bom = _bom(materials, uuid.UUID(int=0))
    serial = uuid.uuid5(_NAMESPACE, JsonV1Dot6(bom).output_as_string())
    return JsonV1Dot6(_bom(materials, serial)).output_as_string(indent=1).encode() + b"\n"


def _bom(materials: Materials, serial: uuid.UUID) -> Bom:
    subject = Component(
        type=ComponentType.APPLICATION,
        name="medport bundle",
        version=f"{materials.created_at:%Y-%m-%dT%H:%M:%SZ}",
        bom_ref=BomRef("bundle"),
    )
    tool = Component(
        type=ComponentType.APPLICATION,
        name="medport",
        version=materials.medport_version,
        bom_ref=BomRef("tool:medport"),
    )
    metadata = BomMetaData(timestamp=materials.created_at, component=subject)
    metadata.tools.components.add(tool)
    packages = {wheel.name: _package(wheel, sha256) for wheel, sha256 in materials.wheels}
    parts = [
        *packages.values(),
        *(_model(model) for model in materials.models),
        *(_image(name, digest) for name, digest in materials.images.items()),
        *(_provider(archive) for archive in materials.archives),
    ]
    bom = Bom(components=parts, serial_number=serial, metadata=metadata)
    bom.register_dependency(subject, parts)
    for wheel, _ in materials.wheels:
        needed = [packages[name] for name in sorted(_needed(wheel)) if name in packages]
        bom.register_dependency(packages[wheel.name], needed)
    return bom


def _package(wheel: Wheel, sha256: str) -> Component:
    url = PackageURL(type="pypi", name=wheel.name, version=wheel.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=wheel.name,
        version=wheel.version,
        bom_ref=BomRef(str(url)),
        purl=url,
        hashes=[_sha256(sha256)],
        licenses=_licences(wheel.licence),
        properties=[_property("path", f"wheels/{wheel.path.name}")],
    )


def _model(model: Model) -> Component:
    reference = f"snapshot:{model.snapshot_sha256}"
    url = None
    if model.from_hub and model.revision is not None:
        url = PackageURL.from_string(f"pkg:huggingface/{quote(model.model_id)}@{model.revision}")
    files = [
        Component(
            type=ComponentType.FILE,
            name=name,
            bom_ref=BomRef(f"{reference}#{name}"),
            hashes=[_sha256(entry.sha256)],
            properties=[_property("size_bytes", str(entry.size_bytes))],
        )
        for name, entry in sorted(model.files.items())
    ]
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=model.model_id,
        version=model.revision or f"sha256:{model.snapshot_sha256}",
        bom_ref=BomRef(reference),
        purl=url,
        components=files,
        licenses=_terms(model),
        external_references=_terms_page(model),
        properties=[_property("snapshot_sha256", model.snapshot_sha256)],
    )


def _image(name: str, digest: str) -> Component:
    return Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=digest,
        bom_ref=BomRef(f"image:{name}"),
        purl=PackageURL(type="oci", name=name.lower(), version=digest),
        hashes=[_sha256(digest.partition(":")[2])],
        properties=[_property("path", f"images/{name}")],
    )


def _provider(archive: Archive) -> Component:
    host, namespace, kind = archive.source.split("/")
    return Component(
        type=ComponentType.APPLICATION,
        group=f"{host}/{namespace}",
        name=f"terraform-provider-{kind}",
        version=archive.version,
        bom_ref=BomRef(f"provider:{archive.path}"),
        hashes=[_sha256(archive.sha256)],
        properties=[
            _property("path", f"providers/{archive.path}"),
            _property("platform", archive.platform),
            *(_property("terraform_hash", each) for each in archive.hashes),
        ],
    )


def _needed(wheel: Wheel) -> Iterator[str]:
    """Names of what it may need, under whichever marker; those that are not in the bundle are not drawn."""
    for line in wheel.requires:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(need.name) != wheel.name:
            yield canonicalize_name(need.name)


def _licences(said: str | None) -> list[License]:
    if said is None:
        return []
    if known := fixup_id(said):
        return [DisjunctiveLicense(id=known)]
    return [LicenseExpression(said) if is_expression(said) else DisjunctiveLicense(name=said)]


def _terms(model: Model) -> list[License]:
    if model.terms is None:
        return []
    return [DisjunctiveLicense(name=model.terms, url=XsUri(model.terms_url) if model.terms_url else None)]


def _terms_page(model: Model) -> list[ExternalReference]:
    if model.terms_url is None:
        return []
    return [ExternalReference(type=ExternalReferenceType.LICENSE, url=XsUri(model.terms_url))]


def _sha256(content: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=content)


def _property(name: str, value: str) -> Property:
    return Property(name=_PREFIX + name, value=value)
