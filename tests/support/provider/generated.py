"""Read a provider's schema from the JavaScript that a generator made of it.

Each resource has one file. A comment before each member says ``NAME - computed: B, optional: B, required: B``;
a table says whether what a user may set is a block, and of which type; a class holds the members of each block.
The form is no contract, so whatever is not as expected is an error, never a guess. No node is needed.

What it cannot give: what forces a replacement, what is sensitive or write-only, defaults, allowed values,
arguments that exclude each other. ``overlay`` says those by hand.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_FLAG = "(true|false)"
_MEMBER = re.compile(
    rf"^    // (\w+) - computed: {_FLAG}, optional: {_FLAG}, required: {_FLAG}\n"
    r"(.*?)(?=^    // (?:\w+ - computed|===)|\Z)",
    re.M | re.S,
)
_CLASS = re.compile(r"^class (\w+) extends \w+\.(\w+) \{\n(.*?)^\}\n", re.M | re.S)
_ROW = re.compile(
    rf'^ +(\w+): \{{\n +value: [^\n]*\n +isBlock: {_FLAG},\n +type: "(\w+)",\n +storageClassType: "(\w+)",', re.M
)
_TABLE = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}\n", re.M | re.S)
_MADE = re.compile(r'= new (\w+\.)?(\w+)\(this, "\w+"(?:, (true|false))?\)')
_GETTER = re.compile(r"get(\w+?)Attribute\(")
_SCALARS = {"String": "string", "Number": "number", "Boolean": "bool", "Any": "string"}
_PLAIN = {"string": "string", "number": "number", "boolean": "bool", "any": "string"}


class FormChanged(Exception):
    """The package does not have the form that this module reads."""


def read(wheel: Path, wanted: Iterable[str], *, provider_version: str) -> Json:
    """The schema of each wanted type.

    Returns:
        ``{TYPE: {"members": {NAME: member}, "timeouts": [NAME], "importable": bool}}``. A member has ``required``,
        ``optional`` and ``computed`` and either ``type`` (as terraform spells types in JSON) or, for a block,
        ``nesting``, ``max_items`` (0: any number) and ``members``.

    Raises:
        FormChanged: another provider version, a type that is gone, or a form that is not understood.
    """
    sources = {f"package/lib/{_folder(name)}/index.js": name for name in wanted}
    found: dict[str, Json] = {}
    with zipfile.ZipFile(wheel) as archive:
        inner = [name for name in archive.namelist() if name.endswith(".jsii.tgz")]
        if len(inner) != 1:
            raise FormChanged(f"{wheel.name} holds {len(inner)} jsii archives")
        with archive.open(inner[0]) as stream, tarfile.open(fileobj=stream, mode="r|gz") as files:
            for entry in files:
                content = files.extractfile(entry) if entry.name in sources else None
                if content is not None:
                    name = sources[entry.name]
                    found[name] = _type(name, content.read().decode(), provider_version)
    if missing := sorted(set(sources.values()) - set(found)):
        raise FormChanged(f"{wheel.name} no longer has {', '.join(missing)}")
    return found


def _folder(name: str) -> str:
    if name.startswith("data."):
        return "data-" + name[5:].replace("_", "-")
    return name if name == "provider" else name.removeprefix("google_").replace("_", "-")


def _type(name: str, script: str, provider_version: str) -> Json:
    # The source map in the last line is longer than the code.
    script = script.partition("\n//# sourceMappingURL")[0] + "\n"
    if name != "provider" and f"providerVersion: '{provider_version}'" not in script:
        raise FormChanged(f"{name} is not of provider {provider_version}")
    source = _Source(name, script)
    own = [each for each, (kind, _) in source.classes.items() if kind.startswith("Terraform")]
    if len(own) != 1:
        raise FormChanged(f"{name} has {len(own)} classes of its own")
    body = source.classes[own[0]][1]
    table = {row[1]: row.groups()[1:] for row in _ROW.finditer(body)}
    members = source.members(own[0], table)
    if set(table) - set(members):
        raise FormChanged(f"{name}: no comment for {', '.join(sorted(set(table) - set(members)))}")
    timeouts = members.pop("timeouts", {"timeouts": []})["timeouts"]
    return {"members": members, "timeouts": timeouts, "importable": "generateConfigForImport" in body}


class _Source:
    """One file: its classes and tables by name."""

    def __init__(self, name: str, script: str) -> None:
        self.name = name
        self.classes = {each[1]: (each[2], each[3]) for each in _CLASS.finditer(script)}
        self.tables = {
            each[1][0].upper() + each[1][1:]: {row[1]: row.groups()[1:] for row in _ROW.finditer(each[2])}
            for each in _TABLE.finditer(script)
        }

    def members(self, class_name: str, table: dict[str, Any]) -> Json:
        if class_name not in self.classes:
            raise FormChanged(f"{self.name}: no class {class_name}")
        found = {}
        for each in _MEMBER.finditer(self.classes[class_name][1]):
            said = [flag == "true" for flag in each.group(2, 3, 4)]
            flags = dict(zip(("computed", "optional", "required"), said, strict=True))
            found[each[1]] = self.member(each[1], flags, each[5], table.get(each[1]))
        return found

    def member(self, name: str, flags: dict[str, bool], body: str, row: tuple[str, str, str] | None) -> Json:
        is_block, kind, storage = row or ("false", "", "")
        made = _MADE.search(body)
        if made and not made[1]:
            many = made[2].endswith("List")
            base = made[2].removesuffix("List") if many else made[2].removesuffix("OutputReference")
            members = self.members(base + "OutputReference", self.tables.get(base, {}))
            if name == "timeouts" and kind == "struct":
                return {"timeouts": sorted(members)}
            nesting = "set" if kind == "set" or made[3] == "true" else "list"
            if is_block == "true":
                nested = {"nesting": nesting, "max_items": 0 if many else 1, "members": members}
                return {**flags, **nested, "computed": False}
            return {**flags, "type": [nesting, _object(members)]}
        if is_block == "true":  # The provider's own blocks have no class, only a table.
            rows = self.tables.get(storage.removesuffix("List"))
            if rows is None:
                raise FormChanged(f"{self.name}: no table for the block {name}")
            optional = {"optional": True, "computed": False, "required": False}
            members = {inner: {**optional, "type": _PLAIN.get(row[2], "string")} for inner, row in rows.items()}
            return {**flags, "nesting": "set" if kind == "set" else "list", "max_items": 1, "members": members}
        return {**flags, "type": self.type(name, body, made, kind, storage)}

    def type(self, name: str, body: str, made: re.Match[str] | None, kind: str, storage: str) -> Any:
        getter = _GETTER.search(body)
        said = getter[1] if getter else made[2] if made else ""
        if said.endswith("Map") or storage.endswith("Map"):
            element = said.removesuffix("Map") or storage.removesuffix("Map").capitalize()
            return ["map", _SCALARS.get(element, "string")]
        if "tolist" in body or kind == "set":
            return ["set", _SCALARS.get(said.removesuffix("List"), "string")]
        if said.endswith("List") or kind == "list":
            return ["list", _SCALARS.get(said.removesuffix("List"), "string")]
        if said in _SCALARS:
            return "bool" if storage == "boolean" else _SCALARS[said]
        if storage in _PLAIN:
            return _PLAIN[storage]
        raise FormChanged(f"{self.name}: the type of {name} is not understood")


def _object(members: Json) -> Any:
    """The type of an object with these members, as terraform spells it in JSON."""
    return [
        "object",
        {
            name: each["type"] if "type" in each else [each["nesting"], _object(each["members"])]
            for name, each in members.items()
        },
    ]
