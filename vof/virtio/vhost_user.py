# SPDX-License-Identifier: BSD-3-Clause
"""The vhost-user protocol as tables and a codec, without any socket (QEMU's vhost-user document).

A message is a header (request, flags, size), a payload, and file descriptors that travel beside it.
Numbers are in the machine's own byte order, which here is little endian. Descriptors are values:
whoever has a ``Message`` takes what it wants with ``take`` and closes the rest with ``close``.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from vof.errors import RemoteProtocolError
from vof.virtio.layout import packed_off_wrap

HEADER = struct.Struct("<III")
VERSION = 1
VERSION_MASK = 3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3
MOST_PAYLOAD = 4096
"""Largest payload that is taken, in bytes."""
MOST_FDS = 8
"""Most descriptors of one message."""
VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 1 << 8
"""In the payload of SET_VRING_KICK and the like: no descriptor comes along, poll instead."""
CONFIG_MAX = 256
VRING_F_LOG = 1


class Protocol(IntEnum):
    """Protocol feature bits."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    SHMEM = 21


F_LOG_ALL = 26
F_PROTOCOL_FEATURES = 30
"""Bits among the virtio features that belong to vhost-user itself."""


class Kind(NamedTuple):
    """How a payload looks.

    Attributes:
        codec: its fixed part.
        names: its fields.
        tail: bytes may follow the fixed part.
    """

    codec: struct.Struct
    names: tuple[str, ...]
    tail: bool = False

    def pack(self, *values: int, tail: bytes = b"") -> bytes:
        """Return a payload. Raises struct.error."""
        return self.codec.pack(*values) + tail

    def unpack(self, payload: bytes) -> tuple[int, ...]:
        """Return the fields of the fixed part.

        Raises:
            RemoteProtocolError: the payload is of another size.
        """
        size = self.codec.size
        if len(payload) < size or (len(payload) > size and not self.tail):
            raise RemoteProtocolError(f"a vhost-user payload of {len(payload)} bytes, not {size}")
        return self.codec.unpack_from(payload)


def _kind(form: str, names: str, tail: bool = False) -> Kind:
    return Kind(struct.Struct("<" + form), tuple(names.split()), tail)


NONE = _kind("", "")
U64 = _kind("Q", "value")
STATE = _kind("II", "index num")
ADDR = _kind("IIQQQQ", "index flags descriptor used available log")
MEMORY = _kind("I4x", "count", tail=True)
REGION = _kind("QQQQ", "guest size user offset")
ONE_REGION = _kind("8xQQQQ", "guest size user offset")
LOG = _kind("QQ", "size offset")
CONFIG = _kind("III", "offset size flags", tail=True)
INFLIGHT = _kind("QQHH", "mmap_size mmap_offset num_queues queue_size")
IOTLB = _kind("QQQBB6x", "iova size user permission type")
AREA = _kind("QQQ", "index size offset")
CRYPTO = _kind("", "", tail=True)
TRANSFER = _kind("II", "direction phase")
UUID = _kind("16s", "uuid")
SHMEM = _kind("I4x", "count", tail=True)
MMAP = _kind("B7xQQQQ", "shmid fd_offset shm_offset length flags")


class Request(NamedTuple):
    """One row of a table of messages.

    Attributes:
        name: as in the document.
        number: on the wire.
        payload: of the request.
        reply: of the answer that it always has; None: an answer only where REPLY_ACK is asked for.
        fds: most descriptors of the request.
    """

    name: str
    number: int
    payload: Kind
    reply: Kind | None = None
    fds: int = 0


FRONTEND: dict[str, Request] = {
    row.name: row
    for row in (
        Request("GET_FEATURES", 1, NONE, U64),
        Request("SET_FEATURES", 2, U64),
        Request("SET_OWNER", 3, NONE),
        Request("RESET_OWNER", 4, NONE),
        Request("SET_MEM_TABLE", 5, MEMORY, fds=MOST_FDS),
        Request("SET_LOG_BASE", 6, LOG, fds=1),
        Request("SET_LOG_FD", 7, NONE, fds=1),
        Request("SET_VRING_NUM", 8, STATE),
        Request("SET_VRING_ADDR", 9, ADDR),
        Request("SET_VRING_BASE", 10, STATE),
        Request("GET_VRING_BASE", 11, STATE, STATE),
        Request("SET_VRING_KICK", 12, U64, fds=1),
        Request("SET_VRING_CALL", 13, U64, fds=1),
        Request("SET_VRING_ERR", 14, U64, fds=1),
        Request("GET_PROTOCOL_FEATURES", 15, NONE, U64),
        Request("SET_PROTOCOL_FEATURES", 16, U64),
        Request("GET_QUEUE_NUM", 17, NONE, U64),
        Request("SET_VRING_ENABLE", 18, STATE),
        Request("SEND_RARP", 19, U64),
        Request("NET_SET_MTU", 20, U64),
        Request("SET_BACKEND_REQ_FD", 21, NONE, fds=1),
        Request("IOTLB_MSG", 22, IOTLB),
        Request("SET_VRING_ENDIAN", 23, STATE),
        Request("GET_CONFIG", 24, CONFIG, CONFIG),
        Request("SET_CONFIG", 25, CONFIG),
        Request("CREATE_CRYPTO_SESSION", 26, CRYPTO, CRYPTO),
        Request("CLOSE_CRYPTO_SESSION", 27, U64),
        Request("POSTCOPY_ADVISE", 28, NONE, U64),
        Request("POSTCOPY_LISTEN", 29, NONE),
        Request("POSTCOPY_END", 30, NONE, U64),
        Request("GET_INFLIGHT_FD", 31, INFLIGHT, INFLIGHT),
        Request("SET_INFLIGHT_FD", 32, INFLIGHT, fds=1),
        Request("GPU_SET_SOCKET", 33, NONE, fds=1),
        Request("RESET_DEVICE", 34, NONE),
        Request("VRING_KICK", 35, STATE),
        Request("GET_MAX_MEM_SLOTS", 36, NONE, U64),
        Request("ADD_MEM_REG", 37, ONE_REGION, fds=1),
        Request("REM_MEM_REG", 38, ONE_REGION),
        Request("SET_STATUS", 39, U64),
        Request("GET_STATUS", 40, NONE, U64),
        Request("GET_SHARED_OBJECT", 41, UUID, U64),
        Request("SET_DEVICE_STATE_FD", 42, TRANSFER, U64, fds=1),
        Request("CHECK_DEVICE_STATE", 43, NONE, U64),
        Request("GET_SHMEM_CONFIG", 44, NONE, SHMEM),
    )
}
"""What a frontend asks of a backend."""

BACKEND: dict[str, Request] = {
    row.name: row
    for row in (
        Request("IOTLB_MSG", 1, IOTLB),
        Request("CONFIG_CHANGE_MSG", 2, NONE),
        Request("VRING_HOST_NOTIFIER_MSG", 3, AREA, fds=1),
        Request("VRING_CALL", 4, STATE),
        Request("VRING_ERR", 5, STATE),
        Request("SHARED_OBJECT_ADD", 6, UUID),
        Request("SHARED_OBJECT_REMOVE", 7, UUID),
        Request("SHARED_OBJECT_LOOKUP", 8, UUID, fds=1),
        Request("SHMEM_MAP", 9, MMAP, fds=1),
        Request("SHMEM_UNMAP", 10, MMAP),
    )
}
"""What a backend asks of a frontend, on a socket of its own."""


class Message:
    """One message with its descriptors, which it owns.

    Attributes:
        number: of the request.
        flags: of the header, without the version.
        payload: bytes.
        fds: descriptors that nobody took yet.
    """

    __slots__ = ("fds", "flags", "number", "payload")

    def __init__(
        self, number: int, flags: int = 0, payload: bytes = b"", fds: Iterable[int] = ()
    ) -> None:
        self.number = number
        self.flags = flags
        self.payload = payload
        self.fds = list(fds)

    @property
    def reply(self) -> bool:
        """Whether it answers a request."""
        return bool(self.flags & FLAG_REPLY)

    @property
    def need_reply(self) -> bool:
        """Whether an answer is asked for although the request has none of its own."""
        return bool(self.flags & FLAG_NEED_REPLY)

    def encode(self) -> bytes:
        """Return header and payload; the descriptors go beside them."""
        header = HEADER.pack(self.number, self.flags | VERSION, len(self.payload))
        return header + self.payload

    def take(self) -> int | None:
        """Take the first descriptor, which belongs to the caller then; None when there is none."""
        return self.fds.pop(0) if self.fds else None

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())


class Decoder:
    """From received bytes and descriptors to messages.

    Descriptors belong to the message whose bytes they came with: to the one whose header is read
    next when they arrive.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Message]:
        """Take what one ``recvmsg`` brought; return the messages that are complete.

        Raises:
            RemoteProtocolError: a header of no known version, a payload that is too large, or too
                many descriptors. All descriptors that are not in a returned message are closed.
        """
        self._fds += fds
        self._data += data
        messages = []
        try:
            if len(self._fds) > MOST_FDS:
                raise RemoteProtocolError(f"{len(self._fds)} descriptors with one message")
            while len(self._data) >= HEADER.size:
                number, flags, size = HEADER.unpack_from(self._data)
                if flags & VERSION_MASK != VERSION:
                    raise RemoteProtocolError(f"vhost-user version {flags & VERSION_MASK}, not 1")
                if size > MOST_PAYLOAD:
                    raise RemoteProtocolError(f"a vhost-user payload of {size} bytes")
                end = HEADER.size + size
                if len(self._data) < end:
                    break
                payload = bytes(self._data[HEADER.size : end])
                del self._data[:end]
                messages.append(Message(number, flags & ~VERSION_MASK, payload, self._fds))
                self._fds = []
        except RemoteProtocolError:
            for message in messages:
                message.close()
            self.close()
            raise
        return messages

    def close(self) -> None:
        """Close descriptors whose message never became complete."""
        while self._fds:
            os.close(self._fds.pop())


def vring_fd(index: int, fd: int | None) -> tuple[bytes, list[int]]:
    """Return payload and descriptors of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR."""
    if fd is None:
        return U64.pack(index | VRING_NO_FD), []
    return U64.pack(index), [fd]


def vring_base(position: int, num: int, packed: bool) -> int:
    """Return where a ring of ``num`` begins, for SET_VRING_BASE.

    Args:
        position: buffers, or descriptors of a packed ring, since the first; all used.
        num: its size.
        packed: a packed ring has an offset and a wrap counter, of both sides, in 16 bits each.
    """
    if not packed:
        return position & 0xFFFF
    off_wrap = packed_off_wrap(position, num)
    return off_wrap << 16 | off_wrap


def memory_table(regions: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Return the payload of SET_MEM_TABLE: guest address, size, user address, offset of each."""
    return MEMORY.pack(len(regions), tail=b"".join(REGION.pack(*region) for region in regions))
