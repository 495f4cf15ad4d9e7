# SPDX-License-Identifier: BSD-3-Clause
"""Dialect v5, the native one: every number and layout of the specification draft, fifth version.

The tables here are the protocol; ``specs/protocol.md`` describes them and a test compares both.
"""

from vof.protocol.wire import Command, Layout

PORT = 8549
CONTROL_QUEUE_SIZE = 32
NEW_INSTANCE = 0xFFFF
VQN_BYTES = 256
BODY_BYTES = 1024

# Opcodes. Below 0x1000 they concern the transport, from there on the device.
CONNECT = 0x0000
DISCONNECT = 0x0001
KEEPALIVE = 0x0002
GET_FEATURE = 0x0004
SET_FEATURE = 0x0005
GET_KEYED_NUM_DESCS = 0x0100
GET_KEYED_EAGER_BUF = 0x0102
VQ_KEYED_EAGER_BUF = 0x0FFE
VQ = 0x0FFF
GET_VENDOR_ID = 0x1000
GET_DEVICE_ID = 0x1001
RESET_DEVICE = 0x1003
GET_STATUS = 0x1004
SET_STATUS = 0x1005
GET_DEVICE_FEATURE = 0x1006
SET_DRIVER_FEATURE = 0x1009
GET_VQ_SIZE = 0x100A
GET_CONFIG = 0x100C
SET_CONFIG = 0x100D

# Command ids that no command of the control queue may have.
RESERVED_IDS = range(0xFF00, 0x10000)
ID_CONFIG_CHANGE = 0xFFFE
ID_KEEPALIVE = 0xFFFF

# Transport feature bits.
F_KEYED_NUM_DESCS = 0
F_KEYED_EAGER_BUF = 1

# Status codes.
OK = 0x0000
ENOCMD = 0x0001
ECMDQUOT = 0x0002
ENOTGT = 0x1001
ENODEV = 0x1002
EACLREJECTED = 0x1003
EBADDEV = 0x1010
EBADVQN = 0x1011
EQUEUEQUOT = 0x1020
EQUEUEBUSY = 0x1021
EQSIZEQUOT = 0x1022
EFEATURE = 0x2000
ESTATUS = 0x2010
EDEVFEATURE = 0x2020
ECONFOFF = 0x2030
ECONFBYTES = 0x2031
EOUTVQBUF = 0x20F0
EINVQBUF = 0x20F1

STATUS: dict[int, tuple[str, str]] = {
    OK: ("OK", "success"),
    ENOCMD: ("ENOCMD", "unknown command, or not on this queue, or its feature is not on"),
    ECMDQUOT: ("ECMDQUOT", "more commands in flight than the queue size allows"),
    ENOTGT: ("ENOTGT", "no such target: the TVQN names nothing here"),
    ENODEV: ("ENODEV", "the device instance could not be created"),
    EACLREJECTED: (
        "EACLREJECTED",
        "access rejected: the device is not for an initiator of this name and address",
    ),
    EBADDEV: ("EBADDEV", "no such device instance for this initiator"),
    EBADVQN: ("EBADVQN", "a qualified name is not NUL-terminated UTF-8, or another than before"),
    EQUEUEQUOT: (
        "EQUEUEQUOT",
        "no queue of this index, or no room for more queues",
    ),
    EQUEUEBUSY: ("EQUEUEBUSY", "the queue is connected already"),
    EQSIZEQUOT: ("EQSIZEQUOT", "the queue size is larger than the device allows"),
    EFEATURE: ("EFEATURE", "transport feature bits that the target does not have"),
    ESTATUS: ("ESTATUS", "this device status may not follow the present one"),
    EDEVFEATURE: ("EDEVFEATURE", "feature bits that were not offered, or too late"),
    ECONFOFF: ("ECONFOFF", "configuration offset outside the device's space, or not writable"),
    ECONFBYTES: ("ECONFBYTES", "configuration access of other than 1, 2, 4 or 8 bytes"),
    EOUTVQBUF: ("EOUTVQBUF", "the readable part of the request could not be read"),
    EINVQBUF: ("EINVQBUF", "the writable part of the request could not be written"),
}

_HEAD = "opcode command_id"
_DONE = "status command_id"


def _command(name: str, form: str, names: str) -> Layout:
    return Layout(f"{name} command", f"4.{name}", "HH" + form, f"{_HEAD} {names}", 16)


def _completion(name: str, form: str, names: str) -> Layout:
    return Layout(f"{name} completion", f"4.{name}", "HH" + form, f"{_DONE} {names}", 16)


def _plain(name: str, opcode: int, queues: str, cmd: str, done: str) -> Command:
    """Make a row; ``cmd`` and ``done`` read "format names"."""
    form, _, names = cmd.partition(" ")
    answer, _, answers = done.partition(" ")
    return Command(
        name,
        opcode,
        _command(name, form, names),
        _completion(name, answer, answers),
        queues,
    )


NOTHING = "12x"

COMMANDS: dict[int, Command] = {
    row.opcode: row
    for row in (
        _plain(
            "CONNECT",
            CONNECT,
            "cv",
            "HHIH2x device_instance_id vq_index length queue_size",
            "H10x device_instance_id",
        ),
        _plain("DISCONNECT", DISCONNECT, "cv", NOTHING, NOTHING),
        _plain("KEEPALIVE", KEEPALIVE, "c", NOTHING, NOTHING),
        _plain("GET_FEATURE", GET_FEATURE, "c", "I8x select", "4xQ feature"),
        _plain("SET_FEATURE", SET_FEATURE, "c", "IQ select feature", NOTHING),
        _plain("GET_KEYED_NUM_DESCS", GET_KEYED_NUM_DESCS, "c", NOTHING, "B11x descs"),
        _plain(
            "GET_KEYED_EAGER_BUF", GET_KEYED_EAGER_BUF, "c", "HB9x vq_index descs", "B11x descs"
        ),
        _plain(
            "VQ_KEYED_EAGER_BUF",
            VQ_KEYED_EAGER_BUF,
            "v",
            "III out_offset out_length in_length",
            "I8x length",
        ),
        _plain("VQ", VQ, "v", "4xII out_length in_length", "4xII length in_length"),
        _plain("GET_VENDOR_ID", GET_VENDOR_ID, "c", NOTHING, "I8x vendor_id"),
        _plain("GET_DEVICE_ID", GET_DEVICE_ID, "c", NOTHING, "I8x device_id"),
        _plain("RESET_DEVICE", RESET_DEVICE, "c", NOTHING, NOTHING),
        _plain("GET_STATUS", GET_STATUS, "c", NOTHING, "I8x device_status"),
        _plain("SET_STATUS", SET_STATUS, "c", "I8x device_status", NOTHING),
        _plain("GET_DEVICE_FEATURE", GET_DEVICE_FEATURE, "c", "I8x select", "4xQ feature"),
        _plain("SET_DRIVER_FEATURE", SET_DRIVER_FEATURE, "c", "IQ select feature", NOTHING),
        _plain("GET_VQ_SIZE", GET_VQ_SIZE, "c", "H10x vq_index", "H10x size"),
        _plain("GET_CONFIG", GET_CONFIG, "c", "HBx8x offset bytes", "IQ generation value"),
        _plain("SET_CONFIG", SET_CONFIG, "c", "HBxQ offset bytes value", NOTHING),
    )
}

BODY = Layout("CONNECT body", "4.CONNECT", "256s256s512x", "ivqn tvqn", BODY_BYTES)
KEYED_DESC = Layout("keyed descriptor", "5.3", "QII", "addr length key", 16)
COMPLETION = Layout("completion", "3.2", "HH12x", "status command_id", 16)
CONFIG_EVENT = Layout("config-change event", "3.4", "HHI8x", f"{_DONE} generation", 16)
KEEPALIVE_EVENT = Layout("keepalive event", "3.4", "HH12x", _DONE, 16)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in [
        *(part for row in COMMANDS.values() for part in (row.command, row.completion)),
        BODY,
        KEYED_DESC,
        COMPLETION,
        CONFIG_EVENT,
        KEEPALIVE_EVENT,
    ]
}


def status_name(status: int) -> str:
    """Return the name of a status code, or its number where it has none."""
    return STATUS[status][0] if status in STATUS else f"0x{status:04x}"


def status_text(status: int) -> str:
    """Return a status code with its meaning."""
    name, meaning = STATUS.get(status, (f"0x{status:04x}", "unknown status code"))
    return f"{name} ({meaning})"
