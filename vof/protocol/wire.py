# SPDX-License-Identifier: BSD-3-Clause
"""Wire layouts as tables: a message is a ``struct`` format and the names of its fields.

Encode, decode, the golden vectors, the property tests and the check of ``specs/protocol.md`` all
read the same table. The data path does not come through here: it uses ``Layout.codec`` directly.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from vof.memory import Buffer


class Field(NamedTuple):
    """One field of a layout: name, byte offset, width in bytes."""

    name: str
    offset: int
    width: int


class Layout:
    """A fixed-size message part, little endian; pad bytes are reserved: sent as 0, not read.

    Attributes:
        name: how the message is called.
        codec: packs and unpacks all fields in order.
        names: the fields, in order.
        section: where it is specified.
    """

    __slots__ = ("codec", "name", "names", "section")

    def __init__(self, name: str, section: str, form: str, names: str, size: int) -> None:
        self.name = name
        self.section = section
        self.codec = struct.Struct("<" + form)
        self.names = tuple(names.split())
        assert self.codec.size == size, f"{name}: {self.codec.size} bytes, not {size}"
        assert len(self.fields()) == len(self.names), name

    def __repr__(self) -> str:
        return f"<layout {self.name}, {self.codec.size} bytes>"

    def fields(self) -> list[Field]:
        """Return the fields with their offsets."""
        fields, offset, count, names = [], 0, "", iter(self.names)
        for letter in self.codec.format[1:]:
            if letter.isdigit():
                count += letter
                continue
            width = struct.calcsize(f"<{count}{letter}")
            if letter != "x":
                fields.append(Field(next(names), offset, width))
            offset, count = offset + width, ""
        return fields

    def encode(self, values: Mapping[str, int | bytes]) -> bytes:
        """Return the bytes; a field that is not named is 0.

        Raises:
            struct.error: a value does not fit its field.
            KeyError: there is no such field.
        """
        if unknown := values.keys() - set(self.names):
            raise KeyError(f"{self.name} has no field {', '.join(sorted(unknown))}")
        empty: dict[str, int | bytes] = {
            field.name: b"" for field in self.fields() if field.width > 8
        }
        return self.codec.pack(*(values.get(n, empty.get(n, 0)) for n in self.names))

    def decode(self, data: Buffer, offset: int = 0) -> dict[str, int]:
        """Return the fields of the message at ``offset`` by name."""
        return dict(zip(self.names, self.codec.unpack_from(data, offset), strict=True))


class Command(NamedTuple):
    """One row of a dialect's command table.

    Attributes:
        name: of the command, as in the specification.
        opcode: its number.
        command: layout of what the initiator sends.
        completion: layout of the answer.
        queues: where it is legal: "c" control queue, "v" virtqueue.
    """

    name: str
    opcode: int
    command: Layout
    completion: Layout
    queues: str


def describe(layout: Layout, values: Mapping[str, int | bytes]) -> str:
    """Return a message as one line, for logs and errors."""
    return f"{layout.name}({', '.join(f'{n}={v!r}' for n, v in values.items())})"
