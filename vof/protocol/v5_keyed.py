# SPDX-License-Identifier: BSD-3-Clause
"""What both sides of dialect v5 say to each other about keyed memory, beyond ``v5``.

A list of keyed descriptors is a field of its own nowhere: in the vocabulary that sides speak above
their streams, each of its numbers is a field, "addr.0" and so on.
"""

import struct
from collections.abc import Mapping, Sequence

from vof.protocol import v5
from vof.protocol.registered import Desc
from vof.virtio.constants import bit

FEATURES = bit(v5.F_KEYED_NUM_DESCS, v5.F_KEYED_EAGER_BUF)
"""Transport features that this implementation has."""
DESCS = 32
"""Keyed descriptors of one command, at most, that our target takes."""
MOST_DESCS = 255
"""That any target can say it takes."""

HEADER = struct.Struct("<HH4xII")
"""A VQ command, and a completion: code, command id, and two lengths."""
EAGER = v5.COMMANDS[v5.VQ_KEYED_EAGER_BUF].command.codec
EAGER_DONE = v5.COMMANDS[v5.VQ_KEYED_EAGER_BUF].completion.codec
DESC = v5.KEYED_DESC.codec
SHORT = struct.Struct("<HHIIIQII")
"""The command of a request that was written beforehand, and one keyed descriptor."""


def to_fields(descs: Sequence[Desc]) -> dict[str, int]:
    """Return descriptors as fields, with their number as "descs"."""
    fields = {"descs": len(descs)}
    for number, desc in enumerate(descs):
        for name, value in zip(v5.KEYED_DESC.names, desc, strict=True):
            fields[f"{name}.{number}"] = value
    return fields


def from_fields(fields: Mapping[str, int]) -> list[Desc]:
    """Return the descriptors that fields are."""
    return [
        (fields[f"addr.{number}"], fields[f"length.{number}"], fields[f"key.{number}"])
        for number in range(fields["descs"])
    ]
