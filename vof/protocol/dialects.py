# SPDX-License-Identifier: BSD-3-Clause
"""The table of dialects: which mapping onto each kind of carrier a name stands for.

The rest of the program speaks one vocabulary, that of v5: opcodes, field names, status codes. A
dialect's mappings translate between it and what stands on its wire.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from vof.errors import RemoteProtocolError
from vof.memory import Buffer
from vof.protocol import v0, v5
from vof.protocol.byte_target import ByteTarget
from vof.protocol.initiator_stream import InitiatorStream
from vof.protocol.keyed import FIRST_BYTES, KeyedStream, Post
from vof.protocol.keyed_target import KeyedTarget
from vof.protocol.registered import Memory
from vof.protocol.stream import Inbox, Outbox, Program
from vof.protocol.target_stream import TargetStream
from vof.protocol.v0_initiator import V0Initiator
from vof.protocol.v0_keyed_initiator import V0KeyedInitiator
from vof.protocol.v0_keyed_target import V0KeyedTarget
from vof.protocol.v0_target import V0Target
from vof.protocol.v5_initiator import V5Initiator
from vof.protocol.v5_keyed_initiator import V5KeyedInitiator
from vof.protocol.v5_keyed_target import V5KeyedTarget
from vof.protocol.v5_target import V5Target
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

Target = TypeVar("Target", bound=TargetStream, covariant=True)


class Streams(NamedTuple, Generic[Target]):
    """A dialect's mapping onto one kind of carrier.

    Attributes:
        target: the target's side.
        initiator: the initiator's side, of a queue size and whether it is a control queue.
    """

    target: type[Target]
    initiator: Callable[[int, bool], InitiatorStream]


class Dialect(NamedTuple):
    """One row.

    Attributes:
        port: default port.
        stream: the mapping onto a byte stream.
        keyed: the mapping onto a queue pair.
        required: features that a device must offer. Where it is none, a device without
            VIRTIO_F_VERSION_1 is driven as well: the byte order is fixed by the dialect.
    """

    port: int
    stream: Streams[ByteTarget]
    keyed: Streams[KeyedTarget]
    required: int

    def on(self, mapping: str) -> Streams[TargetStream]:
        """Return the mapping onto a kind of carrier: see ``Connection.mapping``."""
        return self.keyed if mapping == "keyed" else self.stream


DIALECTS = {
    "v5": Dialect(
        v5.PORT,
        Streams(V5Target, V5Initiator),
        Streams(V5KeyedTarget, V5KeyedInitiator),
        bit(VIRTIO_F_VERSION_1),
    ),
    "v0": Dialect(
        v0.PORT, Streams(V0Target, V0Initiator), Streams(V0KeyedTarget, V0KeyedInitiator), 0
    ),
}
NATIVE = "v5"

_HEAD = struct.Struct("<H6xH6x")


def recognise(head: Buffer) -> Dialect:
    """Return the dialect of an initiator by the 16 bytes that it begins with.

    CONNECT is first, and has at offset 8 the number of its descriptors in v0, which is 1, and the
    length of its body in v5, which never is.
    """
    opcode, ndesc = _HEAD.unpack_from(head)
    return DIALECTS["v0" if opcode == v0.CONNECT and ndesc == 1 else NATIVE]


class Opening(ABC):
    """The stream of a connection whose dialect is not known yet; nothing is sent on it.

    Attributes:
        dialect: as soon as it is known.
    """

    dialect: Dialect | None = None

    @abstractmethod
    def open(self, dialect: Dialect, request_bytes: int, queue_bytes: int) -> TargetStream:
        """Return the stream that goes on with what came; ``advance`` lets it begin."""

    @abstractmethod
    def release(self) -> None:
        """Let go of everything; see ``TargetStream.release``."""


class ByteOpening(Opening):
    """What begins with 16 bytes that are not read yet."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.outbox = Outbox()
        self.seal = self.outbox.seal
        self.inbox.run(self._head())

    def _head(self) -> Program:
        inbox = self.inbox
        while inbox.end - inbox.pos < _HEAD.size:
            yield _HEAD.size
        self.dialect = recognise(inbox.view[inbox.pos : inbox.pos + _HEAD.size])
        yield None

    def open(self, dialect: Dialect, request_bytes: int, queue_bytes: int) -> TargetStream:
        """Let another stream go on with the inbox."""
        return dialect.stream.target(request_bytes, queue_bytes, self.inbox)

    def release(self) -> None:
        """Let go of everything."""
        self.inbox.release()

    def all_sent(self) -> None:
        """Note that nothing waits to be sent: nothing ever does."""


class KeyedOpening(Opening, KeyedStream):
    """What begins with a message, of 16 bytes at least."""

    def __init__(self) -> None:
        self._came: list[bytes] = []

    def carry(self, memory: Memory, reads: int) -> None:
        """Begin: nothing is posted, so nothing of it is needed."""

    @property
    def receives(self) -> tuple[int, int]:
        """For one message: the first."""
        return 1 - len(self._came), FIRST_BYTES

    @property
    def unsent(self) -> bool:
        """Whether something is to be posted: never."""
        return False

    @property
    def expects(self) -> bool:
        """Whether it waits for posts: never."""
        return False

    def posts(self, room: int) -> list[Post]:
        """Return nothing."""
        return []

    def completed(self, count: int) -> None:
        """Note nothing."""

    def received(self, message: bytes) -> None:
        """Take the first message."""
        if len(message) < _HEAD.size:
            raise RemoteProtocolError(f"a message of {len(message)} bytes; CONNECT has 16 and more")
        self._came.append(message)
        self.dialect = recognise(message)

    def open(self, dialect: Dialect, request_bytes: int, queue_bytes: int) -> TargetStream:
        """Let another stream go on with the message."""
        return dialect.keyed.target(request_bytes, queue_bytes, self._came)

    def release(self) -> None:
        """Let go of everything."""
        self._came.clear()


OPENINGS: dict[str, type[Opening]] = {"stream": ByteOpening, "keyed": KeyedOpening}
"""By kind of carrier."""
