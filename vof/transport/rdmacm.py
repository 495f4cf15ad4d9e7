# SPDX-License-Identifier: BSD-3-Clause
# mypy: disable-error-code="mutable-override"
"""librdmacm by ctypes: connections of RDMA, without a call that blocks.

pyverbs binds the same library, but its channel shows no descriptor to wait on, and its events do
not say whose they are. What stands here is the library's binary interface, which does not change.
The interpreter is free during each call.

An event is copied and acknowledged at once: nothing of it is looked at later, and to destroy an id
waits for nobody. Queue pairs are made and owned by others (``verbs``); an id only connects them.
"""

import ctypes
import errno
import os
import socket
import struct
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from typing import NamedTuple, TypeAlias

Address: TypeAlias = tuple[str, int]
"""Host and port."""

PORT_SPACE_TCP = 0x0106
OPTION_ID, OPTION_ID_AFONLY = 0, 2
TRANSPORT_IWARP = 1
BACKLOG = 128
RESOLVE_MS = 2000
RETRIES, RECEIVER_RETRIES = 7, 6
"""How often a packet is sent again; and how often for a peer that has no receive posted, each time
after two thirds of a second (7 would be for ever)."""

(
    ADDR_RESOLVED,
    ADDR_ERROR,
    ROUTE_RESOLVED,
    ROUTE_ERROR,
    CONNECT_REQUEST,
    CONNECT_RESPONSE,
    CONNECT_ERROR,
    UNREACHABLE,
    REJECTED,
    ESTABLISHED,
    DISCONNECTED,
    DEVICE_REMOVAL,
) = range(12)
"""``enum rdma_cm_event_type``, as far as somebody waits for it."""


class NoRdma(OSError):
    """This machine cannot do RDMA; the message says what is missing and how to get it."""


# -- types of the library -----------------------------------------------------------------------


class _Channel(Structure):
    _fields_ = (("fd", c_int),)


class _Context(Structure):
    """The beginning of ``struct ibv_context``."""

    _fields_ = (("device", c_void_p),)


class _Device(Structure):
    """The beginning of ``struct ibv_device``."""

    _fields_ = (
        ("ops", c_void_p * 2),
        ("node_type", c_int),
        ("transport_type", c_int),
        ("name", c_char * 64),
    )


class _Id(Structure):
    """The beginning of ``struct rdma_cm_id``."""

    _fields_ = (
        ("verbs", POINTER(_Context)),
        ("channel", c_void_p),
        ("context", c_void_p),
        ("qp", c_void_p),
        ("source", c_uint8 * 128),
        ("destination", c_uint8 * 128),
    )


class _Parameters(Structure):
    """``struct rdma_conn_param``."""

    _fields_ = (
        ("private_data", c_void_p),
        ("private_data_len", c_uint8),
        ("responder_resources", c_uint8),
        ("initiator_depth", c_uint8),
        ("flow_control", c_uint8),
        ("retry_count", c_uint8),
        ("rnr_retry_count", c_uint8),
        ("srq", c_uint8),
        ("qp_num", c_uint32),
    )


class _Event(Structure):
    """The beginning of ``struct rdma_cm_event``."""

    _fields_ = (
        ("id", c_void_p),
        ("listen_id", c_void_p),
        ("event", c_int),
        ("status", c_int),
        ("parameters", _Parameters),
    )


class GlobalRoute(Structure):
    """``struct ibv_global_route``."""

    _fields_ = (
        ("dgid", c_uint64 * 2),
        ("flow_label", c_uint32),
        ("sgid_index", c_uint8),
        ("hop_limit", c_uint8),
        ("traffic_class", c_uint8),
    )


class AddressVector(Structure):
    """``struct ibv_ah_attr``."""

    _fields_ = (
        ("grh", GlobalRoute),
        ("dlid", c_uint16),
        ("sl", c_uint8),
        ("src_path_bits", c_uint8),
        ("static_rate", c_uint8),
        ("is_global", c_uint8),
        ("port_num", c_uint8),
    )


class Attributes(Structure):
    """``struct ibv_qp_attr``."""

    _fields_ = (
        *((name, c_uint32) for name in ("qp_state", "cur_qp_state", "path_mtu", "path_mig_state")),
        *((name, c_uint32) for name in ("qkey", "rq_psn", "sq_psn", "dest_qp_num")),
        ("qp_access_flags", c_uint32),
        ("cap", c_uint32 * 5),
        ("ah_attr", AddressVector),
        ("alt_ah_attr", AddressVector),
        *((name, c_uint16) for name in ("pkey_index", "alt_pkey_index")),
        *((name, c_uint8) for name in ("en_sqd_async_notify", "sq_draining", "max_rd_atomic")),
        *((name, c_uint8) for name in ("max_dest_rd_atomic", "min_rnr_timer", "port_num")),
        *((name, c_uint8) for name in ("timeout", "retry_cnt", "rnr_retry")),
        *((name, c_uint8) for name in ("alt_port_num", "alt_timeout")),
        ("rate_limit", c_uint32),
    )


_FUNCTIONS = {
    "rdma_bind_addr": (c_void_p, c_char_p),
    "rdma_listen": (c_void_p, c_int),
    "rdma_resolve_addr": (c_void_p, c_char_p, c_char_p, c_int),
    "rdma_resolve_route": (c_void_p, c_int),
    "rdma_connect": (c_void_p, POINTER(_Parameters)),
    "rdma_accept": (c_void_p, POINTER(_Parameters)),
    "rdma_reject": (c_void_p, c_void_p, c_uint8),
    "rdma_establish": (c_void_p,),
    "rdma_disconnect": (c_void_p,),
    "rdma_destroy_id": (c_void_p,),
    "rdma_create_id": (POINTER(_Channel), POINTER(c_void_p), c_void_p, c_int),
    "rdma_set_option": (c_void_p, c_int, c_int, c_void_p, ctypes.c_size_t),
    "rdma_init_qp_attr": (c_void_p, POINTER(Attributes), POINTER(c_int)),
    "rdma_get_cm_event": (POINTER(_Channel), POINTER(POINTER(_Event))),
    "rdma_ack_cm_event": (POINTER(_Event),),
}


@cache
def _library() -> ctypes.CDLL:
    """Return librdmacm. Raises NoRdma."""
    os.environ.setdefault("RDMAV_ALLOW_DISASSOC_DESTROY", "1")  # also of a device that is gone
    try:
        library = ctypes.CDLL("librdmacm.so.1", use_errno=True)
    except OSError:
        raise NoRdma("librdmacm.so.1 is missing: apt install librdmacm1 rdma-core") from None
    for name, types in _FUNCTIONS.items():
        getattr(library, name).argtypes = types
    library.rdma_create_event_channel.restype = POINTER(_Channel)
    library.rdma_destroy_event_channel.argtypes = (POINTER(_Channel),)
    library.rdma_destroy_event_channel.restype = None
    return library


def _call(name: str, *words: object) -> None:
    """Call a function. Raises OSError of what it says."""
    if getattr(_library(), name)(*words):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


# -- addresses ------------------------------------------------------------------------------------


def pack_address(family: int, address: tuple[str | int | bytes, ...]) -> bytes:
    """Return a ``struct sockaddr`` of an address as the socket module has it."""
    host, port, *rest = address
    head = struct.pack("=H", family) + struct.pack("!H", port)
    packed = socket.inet_pton(family, str(host).partition("%")[0])
    if family == socket.AF_INET:
        return head + packed + bytes(8)
    flow, scope = rest or (0, 0)
    return head + struct.pack("!I", flow) + packed + struct.pack("=I", scope)


def unpack_address(raw: bytes) -> Address:
    """Return host and port of a ``struct sockaddr``."""
    (family,), (port,) = struct.unpack_from("=H", raw), struct.unpack_from("!H", raw, 2)
    start, size = (4, 4) if family == socket.AF_INET else (8, 16)
    return socket.inet_ntop(family, raw[start : start + size]), port


# -- channels and ids -----------------------------------------------------------------------------


class Event(NamedTuple):
    """What happened to an id.

    Attributes:
        kind: ADDR_RESOLVED and so on.
        status: 0, or why: a negative error number, or for REJECTED the peer's reason.
        id: whose it is; for CONNECT_REQUEST a new one, which is the receiver's to destroy.
        listener: of CONNECT_REQUEST, who listened; else 0.
        answers: reads of the peer that may be under way at a time, as far as known.
        reads: reads that may be under way at the peer, as far as known.
    """

    kind: int
    status: int
    id: int
    listener: int
    answers: int
    reads: int


class Channel:
    """Where events of some ids come.

    Attributes:
        fd: readable when ``next`` has one.
        closed: whether ``close`` was called.
    """

    closed = False

    def __init__(self) -> None:
        """Open one. Raises NoRdma, OSError."""
        self._pointer = _library().rdma_create_event_channel()
        if not self._pointer:
            code = ctypes.get_errno()
            if code in (errno.ENODEV, errno.ENOENT, errno.ENXIO):
                raise NoRdma(
                    code,
                    "this machine has no RDMA: it needs a device (without hardware: rdma link add "
                    "rxe0 type rxe netdev NAME) and modprobe rdma_ucm; see vof doctor",
                )
            if code in (errno.EACCES, errno.EPERM):
                raise NoRdma(code, "/dev/infiniband/rdma_cm may not be opened by this user")
            raise OSError(code, f"rdma_create_event_channel: {os.strerror(code)}")
        self.fd: int = self._pointer.contents.fd
        os.set_blocking(self.fd, False)

    def identify(self) -> "Id":
        """Return a new id. Raises OSError."""
        pointer = c_void_p()
        _call("rdma_create_id", self._pointer, byref(pointer), None, PORT_SPACE_TCP)
        assert pointer.value
        return Id(pointer.value)

    def next(self) -> Event | None:
        """Return the next event, if there is one. Never suspends. Raises OSError."""
        pointer = POINTER(_Event)()
        try:
            _call("rdma_get_cm_event", self._pointer, byref(pointer))
        except BlockingIOError:
            return None
        raw = pointer.contents
        found = Event(
            raw.event,
            raw.status,
            raw.id,
            raw.listen_id or 0,
            raw.parameters.responder_resources,
            raw.parameters.initiator_depth,
        )
        _call("rdma_ack_cm_event", pointer)
        return found

    def close(self) -> None:
        """Close it; all ids are destroyed. Called once."""
        self.closed = True
        _library().rdma_destroy_event_channel(self._pointer)


class Id:
    """One end of a connection, or a listener.

    Attributes:
        address: what events call it.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self._raw = _Id.from_address(address)

    @property
    def device(self) -> tuple[str, int]:
        """Name and transport type of the RDMA device that it was bound to."""
        device = self._raw.verbs.contents.device
        found = _Device.from_address(device)
        return found.name.decode(), found.transport_type

    @property
    def local(self) -> Address:
        """The address of this side."""
        return unpack_address(bytes(self._raw.source))

    @property
    def peer(self) -> Address:
        """The address of the other side."""
        return unpack_address(bytes(self._raw.destination))

    def listen(self, address: bytes, *, only_this_family: bool) -> None:
        """Bind and listen. Raises OSError."""
        if only_this_family:
            one = c_int(1)
            _call("rdma_set_option", self.address, OPTION_ID, OPTION_ID_AFONLY, byref(one), 4)
        _call("rdma_bind_addr", self.address, address)
        _call("rdma_listen", self.address, BACKLOG)

    def resolve_address(self, address: bytes) -> None:
        """Find the device that reaches an address; ADDR_RESOLVED or ADDR_ERROR follows."""
        _call("rdma_resolve_addr", self.address, None, address, RESOLVE_MS)

    def resolve_route(self) -> None:
        """Find the way; ROUTE_RESOLVED or ROUTE_ERROR follows."""
        _call("rdma_resolve_route", self.address, RESOLVE_MS)

    def connect(self, number: int, answers: int, reads: int) -> None:
        """Ask the peer; CONNECT_RESPONSE, ESTABLISHED (iWARP) or an error follows.

        Args:
            number: of the queue pair.
            answers: reads of the peer that may be under way at a time.
            reads: reads that may be under way at the peer.
        """
        _call("rdma_connect", self.address, byref(_parameters(number, answers, reads)))

    def accept(self, number: int, answers: int, reads: int) -> None:
        """Answer CONNECT_REQUEST. See ``connect``."""
        _call("rdma_accept", self.address, byref(_parameters(number, answers, reads)))

    def reject(self) -> None:
        """Refuse CONNECT_REQUEST."""
        _call("rdma_reject", self.address, None, 0)

    def establish(self) -> None:
        """Confirm CONNECT_RESPONSE: the queue pair is ready."""
        _call("rdma_establish", self.address)

    def attributes(self, state: int) -> tuple[Attributes, int]:
        """Return what a queue pair needs for a state, and which of it counts."""
        attributes, mask = Attributes(qp_state=state), c_int()
        _call("rdma_init_qp_attr", self.address, byref(attributes), byref(mask))
        return attributes, mask.value

    def disconnect(self) -> None:
        """Tell the peer that this is the end. One that knows already is told nothing."""
        try:
            _call("rdma_disconnect", self.address)
        except OSError:
            pass

    def destroy(self) -> None:
        """Let go of it. Called once, last."""
        _call("rdma_destroy_id", self.address)


def _parameters(number: int, answers: int, reads: int) -> _Parameters:
    return _Parameters(None, 0, answers, reads, 0, RETRIES, RECEIVER_RETRIES, 0, number)
