# SPDX-License-Identifier: BSD-3-Clause
"""One request on a queue pair, as the target keeps it. Pure."""

from collections.abc import Sequence
from typing import Literal

from vof.protocol.registered import Desc, Slot


class Request:
    """One request, or anything else that has a place; the token of its chain.

    Attributes:
        command_id: to be echoed.
        capacity: bytes of the writable part.
        size: bytes that it is counted with.
        slot: its place, or None: it has no bytes.
        start: address of the writable part.
        descs: where the initiator has it.
        note: what its completion must know of how it came; the dialect's.
        here: the readable part was read.
    """

    __slots__ = (
        "capacity",
        "command_id",
        "descs",
        "here",
        "note",
        "size",
        "slot",
        "start",
    )

    def __init__(
        self, command_id: int, capacity: int, size: int, slot: Slot | None, descs: Sequence[Desc]
    ) -> None:
        self.command_id = command_id
        self.capacity = capacity
        self.size = size
        self.slot = slot
        self.start = slot.address if slot else 0
        self.descs = descs
        self.note = 0
        self.here = True


Mark = Request | Literal[True] | None
"""What the completion of a post means: a request goes on; True: one more read may be posted."""
