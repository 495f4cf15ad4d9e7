# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v0: every number and layout of ``virtio_of.h``, which the C programs and Linux speak.

Fields have the names that v5 gives to the same things. What a completion brings stands in eight
bytes at offset 8, little endian and zero-filled, however wide the value is said to be.
"""

import errno

from vof.protocol import target_stream as common
from vof.protocol import v5
from vof.protocol.wire import Command, Layout

PORT = 15771
BODY_BYTES = v5.BODY_BYTES
OFTYPE_STREAM = 0
OFTYPE_KEYED = 1
MAX_SEGS = 1024
"""Descriptors of one request, at most."""
KEYED_MAX_SEGS = 128
"""The same on a keyed carrier, where they are one message: as many as the C target has room for."""
FEATURE_MAX_SEGS = 0
"""The only transport feature: GET_FEATURE answers MAX_SEGS."""

VRING_DESC_F_WRITE = 2

CONNECT = 0
DISCONNECT = 1
KEEPALIVE = 2
GET_FEATURE = 3
SET_FEATURE = 4
GET_VENDOR_ID = 4096
GET_DEVICE_ID = 4097
GET_GENERATION = 4098
GET_STATUS = 4099
SET_STATUS = 4100
GET_DEVICE_FEATURE = 4101
SET_DRIVER_FEATURE = 4102
GET_NUM_QUEUES = 4103
GET_QUEUE_SIZE = 4104
SET_QUEUE_SIZE = 4105
GET_CONFIG = 4106
SET_CONFIG = 4107
GET_CONFIG_CHANGED = 4108
VRING = 8192

COMMON: dict[int, int] = {
    CONNECT: v5.CONNECT,
    DISCONNECT: v5.DISCONNECT,
    KEEPALIVE: v5.KEEPALIVE,
    GET_VENDOR_ID: v5.GET_VENDOR_ID,
    GET_DEVICE_ID: v5.GET_DEVICE_ID,
    GET_GENERATION: common.GET_GENERATION,
    GET_STATUS: v5.GET_STATUS,
    SET_STATUS: v5.SET_STATUS,
    GET_DEVICE_FEATURE: v5.GET_DEVICE_FEATURE,
    SET_DRIVER_FEATURE: v5.SET_DRIVER_FEATURE,
    GET_NUM_QUEUES: common.GET_NUM_QUEUES,
    GET_QUEUE_SIZE: v5.GET_VQ_SIZE,
    SET_QUEUE_SIZE: common.SET_VQ_SIZE,
    GET_CONFIG: v5.GET_CONFIG,
    SET_CONFIG: v5.SET_CONFIG,
}
"""The common vocabulary's number of each command that it has."""

OK = 0
EQUIRK = 4096

ERRNO: dict[int, int] = {
    v5.OK: OK,
    v5.ENOCMD: errno.EOPNOTSUPP,
    v5.ECMDQUOT: errno.EBUSY,
    v5.ENOTGT: errno.ENODEV,
    v5.ENODEV: errno.EPROTO,
    v5.EACLREJECTED: errno.EACCES,
    v5.EBADDEV: errno.ENODEV,
    v5.EBADVQN: errno.EPROTO,
    v5.EQUEUEQUOT: errno.ECHRNG,
    v5.EQUEUEBUSY: errno.EBUSY,
    v5.EQSIZEQUOT: errno.EINVAL,
    v5.EFEATURE: errno.EINVAL,
    v5.ESTATUS: errno.EINVAL,
    v5.EDEVFEATURE: errno.EINVAL,
    v5.ECONFOFF: errno.EINVAL,
    v5.ECONFBYTES: errno.EINVAL,
    v5.EOUTVQBUF: errno.EINVAL,
    v5.EINVQBUF: errno.EINVAL,
}
"""What a status is on this wire: a positive errno of Linux."""

STATUS: dict[int, int] = {
    errno.EBUSY: v5.EQUEUEBUSY,
    errno.ENODEV: v5.ENOTGT,
    errno.EACCES: v5.EACLREJECTED,
    errno.ECHRNG: v5.EQUEUEQUOT,
    errno.EPROTO: v5.EBADVQN,
    errno.EOPNOTSUPP: v5.ENOCMD,
}
"""What an errno is in the common vocabulary, but for EINVAL."""
INVALID: dict[int, int] = {
    SET_STATUS: v5.ESTATUS,
    GET_DEVICE_FEATURE: v5.EDEVFEATURE,
    SET_DRIVER_FEATURE: v5.EDEVFEATURE,
    GET_QUEUE_SIZE: v5.EQUEUEQUOT,
    GET_CONFIG: v5.ECONFOFF,
    SET_CONFIG: v5.ECONFOFF,
    VRING: v5.EOUTVQBUF,
}
"""What EINVAL is there, by command."""

_HEAD = "opcode command_id"
_DONE = "status command_id ndesc"


def _row(name: str, opcode: int, queues: str, command: str, done: str = "") -> Command:
    """Make a row; ``command`` reads "format names", ``done`` is the name of the value."""
    form, _, names = command.partition(" ")
    section = f"6.{name}"
    return Command(
        name,
        opcode,
        Layout(f"v0 {name} command", section, "HH" + form, f"{_HEAD} {names}", 16),
        Layout(
            f"v0 {name} completion",
            section,
            "HHH2x" + ("Q" if done else "8x"),
            f"{_DONE} {done}",
            16,
        ),
        queues,
    )


NOTHING = "12x"

COMMANDS: dict[int, Command] = {
    row.opcode: row
    for row in (
        _row(
            "CONNECT",
            CONNECT,
            "cv",
            "HHHB5x device_instance_id vq_index ndesc oftype",
            "device_instance_id",
        ),
        _row("DISCONNECT", DISCONNECT, "cv", NOTHING),
        _row("KEEPALIVE", KEEPALIVE, "cv", NOTHING),
        _row("GET_FEATURE", GET_FEATURE, "cv", "I8x select", "feature"),
        _row("SET_FEATURE", SET_FEATURE, "c", "IQ select feature"),
        _row("GET_VENDOR_ID", GET_VENDOR_ID, "cv", NOTHING, "vendor_id"),
        _row("GET_DEVICE_ID", GET_DEVICE_ID, "cv", NOTHING, "device_id"),
        _row("GET_GENERATION", GET_GENERATION, "cv", NOTHING, "generation"),
        _row("GET_STATUS", GET_STATUS, "cv", NOTHING, "device_status"),
        _row("SET_STATUS", SET_STATUS, "c", "I8x device_status"),
        _row("GET_DEVICE_FEATURE", GET_DEVICE_FEATURE, "cv", "I8x select", "feature"),
        _row("SET_DRIVER_FEATURE", SET_DRIVER_FEATURE, "c", "IQ select feature"),
        _row("GET_NUM_QUEUES", GET_NUM_QUEUES, "cv", NOTHING, "num_queues"),
        _row("GET_QUEUE_SIZE", GET_QUEUE_SIZE, "cv", "H10x vq_index", "size"),
        _row("SET_QUEUE_SIZE", SET_QUEUE_SIZE, "c", "H2xQ vq_index size"),
        _row("GET_CONFIG", GET_CONFIG, "cv", "HBx8x offset bytes", "value"),
        _row("SET_CONFIG", SET_CONFIG, "c", "HBxQ offset bytes value"),
        _row("GET_CONFIG_CHANGED", GET_CONFIG_CHANGED, "c", NOTHING, "generation"),
        _row("VRING", VRING, "v", "IH6x length ndesc", "length"),
    )
}

DESC = Layout("v0 descriptor", "6.2", "QIHHI4x", "addr length id flags key", 24)
BODY = Layout("v0 CONNECT body", "6.CONNECT", "256s256s512x", "ivqn tvqn", BODY_BYTES)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in [
        *(part for row in COMMANDS.values() for part in (row.command, row.completion)),
        DESC,
        BODY,
    ]
}
