# SPDX-License-Identifier: BSD-3-Clause
"""Where the buffers of a chain are: in the region as they are, or as copies."""

from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import TypeAlias

from vof.errors import InvalidArgument
from vof.memory import Buffer, Region
from vof.virtio.layout import VRING_DESC_F_NEXT, VRING_DESC_F_WRITE

from_buffer = c_char.from_buffer

Place: TypeAlias = tuple[int, int, int]
"""Address, length and flags of one descriptor; all of a chain but the last have NEXT."""

Back: TypeAlias = list[tuple[memoryview, memoryview]]
"""Pieces of the region, and the driver's writable buffers that they stand for."""


def place(
    region: Region, sgs: Sequence[Buffer], out_sgs: int
) -> tuple[list[Place], int, list[Buffer], Back]:
    """Find, or copy into the region, the buffers of one chain.

    Args:
        region: where the device finds them.
        sgs: not empty, and neither is any of them.
        out_sgs: how many of them are readable.

    Returns:
        The places, the number of writable bytes, all that must live as long as the chain, and what
        is to be copied back when it was used.

    Raises:
        InvalidArgument: a writable buffer cannot be written.
        MemoryError: the region has no room for a copy.
    """
    base, top = region.address, region.address + region.size
    places: list[Place] = []
    held: list[Buffer] = [*sgs]
    back: Back = []
    room, left = 0, len(sgs)
    for buffer in sgs:
        length, left = len(buffer), left - 1
        flags = VRING_DESC_F_NEXT if left else 0
        if out_sgs:
            out_sgs -= 1
        else:
            flags |= VRING_DESC_F_WRITE
            room += length
        if (
            type(buffer) is memoryview
            and not buffer.readonly
            and base <= (address := addressof(from_buffer(buffer))) <= top - length
        ):
            places.append((address, length, flags))
            continue
        piece = region.alloc(length)
        held.append(piece)
        if flags & VRING_DESC_F_WRITE:
            back.append((piece, _writable(buffer)))
        else:
            piece[:] = buffer
        places.append((region.address_of(piece), length, flags))
    return places, room, held, back


def _writable(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    if view.readonly or view.format != "B":
        raise InvalidArgument("a writable buffer is read-only, or not of bytes")
    return view
