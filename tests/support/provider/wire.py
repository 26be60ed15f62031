"""Terraform's plugin protocol 6: messages built at run time from a table, and the gRPC handlers.

No generated code, so no fence around the version of protobuf. A line of the table is a message and its fields as
``NAME=NUMBER[:TYPE][*]``, and goes on in lines that are indented. The type is string if none is given; ``*`` is
repeated, ``{}`` a map from strings.
The messages are declared in proto2 form, which is the same on the wire, because a step of a path with the index
0 must be sent (in the original it is a member of a oneof).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ERROR, WARNING = 1, 2
NESTING = {"single": 1, "list": 2, "set": 3}

_TABLE = """
DynamicValue msgpack=1:bytes json=2:bytes
AttributePath steps=1:AttributePath.Step*
AttributePath.Step attribute_name=1 element_key_string=2 element_key_int=3:int64
Diagnostic severity=1:int32 summary=2 detail=3 attribute=4:AttributePath
RawState json=1:bytes
Schema version=1:int64 block=2:Schema.Block
Schema.Block version=1:int64 attributes=2:Schema.Attribute* block_types=3:Schema.NestedBlock*
Schema.Attribute name=1 type=2:bytes required=4:bool optional=5:bool computed=6:bool sensitive=7:bool
    write_only=11:bool
Schema.NestedBlock type_name=1 block=2:Schema.Block nesting=3:int32 min_items=4:int64 max_items=5:int64
ServerCapabilities get_provider_schema_optional=2:bool
Imported type_name=1 state=2:DynamicValue private=3:bytes
GetMetadata.Request
GetMetadata.Response server_capabilities=1:ServerCapabilities diagnostics=2:Diagnostic*
GetProviderSchema.Request
GetProviderSchema.Response provider=1:Schema resource_schemas=2:Schema{} data_source_schemas=3:Schema{}
    diagnostics=4:Diagnostic* server_capabilities=6:ServerCapabilities
ValidateProviderConfig.Request config=1:DynamicValue
ValidateProviderConfig.Response diagnostics=2:Diagnostic*
ValidateResourceConfig.Request type_name=1 config=2:DynamicValue
ValidateResourceConfig.Response diagnostics=1:Diagnostic*
ValidateDataResourceConfig.Request type_name=1 config=2:DynamicValue
ValidateDataResourceConfig.Response diagnostics=1:Diagnostic*
UpgradeResourceState.Request type_name=1 version=2:int64 raw_state=3:RawState
UpgradeResourceState.Response upgraded_state=1:DynamicValue diagnostics=2:Diagnostic*
ConfigureProvider.Request terraform_version=1 config=2:DynamicValue
ConfigureProvider.Response diagnostics=1:Diagnostic*
ReadResource.Request type_name=1 current_state=2:DynamicValue private=3:bytes
ReadResource.Response new_state=1:DynamicValue diagnostics=2:Diagnostic*
PlanResourceChange.Request type_name=1 prior_state=2:DynamicValue proposed_new_state=3:DynamicValue
    config=4:DynamicValue
PlanResourceChange.Response planned_state=1:DynamicValue requires_replace=2:AttributePath*
    diagnostics=4:Diagnostic* legacy_type_system=5:bool
ApplyResourceChange.Request type_name=1 prior_state=2:DynamicValue planned_state=3:DynamicValue
    config=4:DynamicValue
ApplyResourceChange.Response new_state=1:DynamicValue diagnostics=3:Diagnostic* legacy_type_system=4:bool
ImportResourceState.Request type_name=1 id=2
ImportResourceState.Response imported_resources=1:Imported* diagnostics=2:Diagnostic*
ReadDataSource.Request type_name=1 config=2:DynamicValue
ReadDataSource.Response state=1:DynamicValue diagnostics=2:Diagnostic*
GetFunctions.Request
GetFunctions.Response diagnostics=2:Diagnostic*
StopProvider.Request
StopProvider.Response Error=1
"""
_Field = descriptor_pb2.FieldDescriptorProto
_PRIMITIVES = {
    "": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}


class _Builder:
    def __init__(self) -> None:
        self.file = descriptor_pb2.FileDescriptorProto(
            name="tfplugin6.proto", package="tfplugin6", syntax="proto2"
        )
        self.made: dict[str, Any] = {}

    def message(self, path: str) -> Any:
        if path not in self.made:
            outer, _, name = path.rpartition(".")
            siblings = self.message(outer).nested_type if outer else self.file.message_type
            self.made[path] = siblings.add(name=name)
        return self.made[path]

    def field(self, path: str, spelled: str) -> None:
        name, _, rest = spelled.partition("=")
        number, _, kind = rest.partition(":")
        if kind.endswith("{}"):
            entry = self.message(path).nested_type.add(name=name.title().replace("_", "") + "Entry")
            entry.options.map_entry = True
            self.add(entry, "key", 1, "", repeated=False)
            self.add(entry, "value", 2, kind[:-2], repeated=False)
            kind = f"{path}.{entry.name}*"
        self.add(self.message(path), name, int(number), kind.rstrip("*"), repeated=kind.endswith("*"))

    def add(self, message: Any, name: str, number: int, kind: str, *, repeated: bool) -> None:
        label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if kind in _PRIMITIVES:
            field.type = _PRIMITIVES[kind]
        else:
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".tfplugin6.{kind}"


def _classes() -> dict[str, Any]:
    builder = _Builder()
    lines = [line.split() for line in _TABLE.replace("\n    ", " ").strip().splitlines()]
    for path, *_ in lines:
        builder.message(path)
    for path, *fields in lines:
        for field in fields:
            builder.field(path, field)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(builder.file.SerializeToString())
    return {
        path: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tfplugin6.{path}"))
        for path, *_ in lines
    }


_CLASSES = _classes()
CALLS = tuple(path.removesuffix(".Request") for path in _CLASSES if path.endswith(".Request"))


def message(path: str, /, **fields: Any) -> Any:
    """A message by its name in the table, such as ``ReadResource.Response``."""
    return _CLASSES[path](**fields)


def path_of(steps: tuple[str | int, ...]) -> Any:
    """Where in a resource something is: names of attributes and blocks, indices in lists."""
    made = [
        message(
            "AttributePath.Step",
            **({"element_key_int": step} if isinstance(step, int) else {"attribute_name": step}),
        )
        for step in steps
    ]
    return message("AttributePath", steps=made)


def error(summary: str, detail: str = "", path: tuple[str | int, ...] = ()) -> Any:
    """A diagnostic that ends the command."""
    return message("Diagnostic", severity=ERROR, summary=summary, detail=detail, attribute=path_of(path))


def handlers(answer: Callable[[str, Any], Any]) -> list[grpc.GenericRpcHandler]:
    """gRPC handlers for a provider whose calls ``answer`` takes by their name."""

    def handler(call: str) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: answer(call, request),
            request_deserializer=_CLASSES[f"{call}.Request"].FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    # It must end at once: terraform opens one a command, and a stream that waits keeps a worker for ever.
    stdio = grpc.unary_stream_rpc_method_handler(lambda request, context: iter(()))
    return [
        grpc.method_handlers_generic_handler("tfplugin6.Provider", {call: handler(call) for call in CALLS}),
        grpc.method_handlers_generic_handler("plugin.GRPCStdio", {"StreamStdio": stdio}),
    ]
