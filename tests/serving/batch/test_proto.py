"""The public gRPC API keeps buf's rules, with every word of it explained."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from tests.conftest import LIMIT_S, ROOT, command

Kind = descriptor_pb2.FileDescriptorProto


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Any]:
    """Every file of proto/, with its comments."""
    out = tmp_path_factory.mktemp("proto") / "set"
    protos = [str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")]
    flags = (f"-I{ROOT / 'proto'}", "--include_source_info", f"--descriptor_set_out={out}")
    # In a process of its own: in one that has loaded TensorFlow, protoc meets another protobuf and crashes.
    subprocess.run(command("grpc_tools.protoc", *flags, *protos), check=True, timeout=LIMIT_S)
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def described(file: Any) -> Iterator[tuple[str, str]]:
    """Yield each message, field, enum, value, service and method of `file` by its name, with its comment."""
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    parts = {"message_type": (4, {"field": 2}), "enum_type": (5, {"value": 2}), "service": (6, {"method": 2})}
    for kind, (number, inside) in parts.items():
        for place, owner in enumerate(getattr(file, kind)):
            yield owner.name, comments.get((number, place), "")
            for members, member_number in inside.items():
                for inner, member in enumerate(getattr(owner, members)):
                    yield f"{owner.name}.{member.name}", comments.get((number, place, member_number, inner), "")


def test_everything_is_explained_in_sentences(files):
    silent = [name for file in files for name, comment in described(file) if not comment.endswith(".")]
    assert silent == []


def test_a_package_is_where_its_name_says_and_versioned(files):
    for file in files:
        assert file.package.replace(".", "/") == file.name.rpartition("/")[0]
        assert file.package.endswith(".v1")
        assert file.syntax == "proto3"


def test_services_and_their_messages_are_named_alike_and_nothing_is_shared(files):
    for service in (service for file in files for service in file.service):
        assert service.name.endswith("Service")
        for method in service.method:
            assert method.input_type.rpartition(".")[2] == f"{method.name}Request"
            assert method.output_type.rpartition(".")[2] == f"{method.name}Response"


def test_values_of_an_enum_bear_its_name_and_zero_says_nothing(files):
    for enum in (enum for file in files for enum in file.enum_type):
        assert (enum.value[0].name, enum.value[0].number) == (f"{enum.name.upper()}_UNSPECIFIED", 0)
        assert all(value.name.startswith(f"{enum.name.upper()}_") for value in enum.value)


def test_fields_are_in_lower_snake_case(files):
    fields = [field.name for file in files for message in file.message_type for field in message.field]
    assert [name for name in fields if name != name.lower() or name.startswith("_") or "__" in name] == []
