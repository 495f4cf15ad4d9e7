# SPDX-License-Identifier: BSD-3-Clause
"""What the parsers of dialect v0 must make of bytes: slow, plain, and sharing no code.

All numbers of the wire stand here once more, as ``virtio_of.h`` has them. Only what the rest of the
program calls things comes from the tables of the common vocabulary.
"""

import struct
from typing import NamedTuple

from tests.fuzz.reference_v5 import INLINE, Completions
from vof.protocol import v5
from vof.protocol.target_stream import GET_GENERATION, GET_NUM_QUEUES, SET_VQ_SIZE, UNKNOWN

EBUSY, ENODEV, EINVAL, EPROTO, EOPNOTSUPP = 16, 19, 22, 71, 95
CONNECT, VRING, GET_CONFIG_CHANGED = 0, 8192, 4108
WRITE = 2
MOST_DESCS = 1024
MOST_HELD = 32
GENERATION = 9

COMMANDS = {
    0: (v5.CONNECT, "HHHB", "device_instance_id vq_index ndesc oftype"),
    1: (v5.DISCONNECT, "", ""),
    2: (v5.KEEPALIVE, "", ""),
    3: (UNKNOWN, "I", "select"),
    4: (UNKNOWN, "IQ", "select feature"),
    4096: (v5.GET_VENDOR_ID, "", ""),
    4097: (v5.GET_DEVICE_ID, "", ""),
    4098: (GET_GENERATION, "", ""),
    4099: (v5.GET_STATUS, "", ""),
    4100: (v5.SET_STATUS, "I", "device_status"),
    4101: (v5.GET_DEVICE_FEATURE, "I", "select"),
    4102: (v5.SET_DRIVER_FEATURE, "IQ", "select feature"),
    4103: (GET_NUM_QUEUES, "", ""),
    4104: (v5.GET_VQ_SIZE, "H", "vq_index"),
    4105: (SET_VQ_SIZE, "H2xQ", "vq_index size"),
    4106: (v5.GET_CONFIG, "HB", "offset bytes"),
    4107: (v5.SET_CONFIG, "HBxQ", "offset bytes value"),
    4108: (UNKNOWN, "", ""),
    8192: (UNKNOWN, "IH", "length ndesc"),
}
ONLY_CONTROL = (4, 4100, 4102, 4105, 4107, 4108)


class Desc(NamedTuple):
    addr: int
    length: int
    ident: int
    flags: int
    key: int
    pad: bytes

    def pack(self, length):
        return struct.pack("<QIHHI4s", *self._replace(length=length))


def table_of(data):
    return [Desc(*fields) for fields in struct.iter_unpack("<QIHHI4s", data)]


def done(status, ident, ndesc=0, value=0):
    return struct.pack("<HHHHQ", status, ident, ndesc, 0, value)


def used(ident, back, payload, written):
    """Return the completion of a request whose first writable bytes are filled."""
    descs, data = b"", b""
    for desc in back:
        part, payload = payload[: desc.length], payload[desc.length :]
        part = part or bytes(min(desc.length, 1))
        descs += desc.pack(len(part))
        data += part
    return done(0, ident, len(back), written) + descs + data


def refused(status, ident, back, failure):
    """Return the completion of a request that nobody carried out; None where there is none."""
    lengths = [min(desc.length, 1) for desc in back]
    full = [number for number, desc in enumerate(back) if desc.length]
    data = bytes(sum(lengths))
    if failure and full:
        length = lengths[full[-1]] = back[full[-1]].length
        if length > INLINE:
            return None
        data = bytes(sum(lengths) - len(failure)) + failure
    descs = (desc.pack(length) for desc, length in zip(back, lengths, strict=True))
    return done(status, ident, len(back)) + b"".join(descs) + data


class Request(NamedTuple):
    ident: int
    readable: bytes
    back: list[Desc]


class Found(NamedTuple):
    """What a target makes of bytes, when it completes no request."""

    chains: list[Request]
    messages: list[tuple[int, int, dict[str, int], bytes]]
    held: list[int]
    answers: list[bytes]


def commands(data, queue_size, request_bytes, failure=b""):
    """Read commands.

    Args:
        data: the bytes.
        queue_size: below 0 before CONNECT, 0 for a control queue.
        request_bytes: of each part of a request, at most.
        failure: what a refused request ends with.

    Returns:
        The name of an error, or "", and what was found before it.
    """
    found = Found([], [], [], [])
    while len(data) >= 16:
        opcode, ident = struct.unpack_from("<HH", data)
        if opcode == VRING and queue_size >= 0:
            error, size = _request(found, data, queue_size, request_bytes, failure)
        elif opcode == CONNECT and queue_size < 0:
            error, size = _connect(found, data)
        else:
            _other(found, opcode, ident, data, queue_size)
            error, size = "", 16
        if error or not size:
            return error, found
        data = data[size:]
    return "", found


def _request(found, data, queue_size, request_bytes, failure):
    ident, ndesc = struct.unpack_from("<2xHIH", data)[::2]
    start = 16 + 24 * ndesc
    if len(data) < start:
        return "", 0
    descs = table_of(data[16:start])
    back = [desc for desc in descs if desc.flags & WRITE]
    out_length = sum(desc.length for desc in descs if not desc.flags & WRITE)
    in_length = sum(desc.length for desc in back)
    size = start + out_length
    right = 0 < ndesc <= MOST_DESCS and max(out_length, in_length) <= request_bytes
    if queue_size and right:
        if len(data) < size or len(found.chains) == queue_size:  # it waits, and all behind it
            return "", 0
        found.chains.append(Request(ident, data[start:size], back))
        return "", size
    if ndesc > MOST_DESCS and out_length > request_bytes:
        return "RemoteProtocolError", 0
    if len(data) < size:
        return "", 0
    answer = refused(EINVAL if queue_size else EOPNOTSUPP, ident, back, failure)
    if answer is None:
        return "RemoteProtocolError", 0
    found.answers.append(answer)
    return "", size


def _connect(found, data):
    ident, instance, index, ndesc, oftype = struct.unpack_from("<2xHHHHB", data)
    if ndesc != 1:
        return "RemoteProtocolError", 0
    if len(data) < 40:
        return "", 0
    (desc,) = table_of(data[16:40])
    if desc.flags & WRITE:
        found.answers.append(refused(ENODEV, ident, [desc], b""))
        return "", 40
    size = 40 + desc.length
    if len(data) < size:
        return "", 0
    if oftype or desc.length != 1024:
        found.answers.append(done(EPROTO, ident))
        return "", size
    fields = {"device_instance_id": instance, "vq_index": index, "ndesc": 1, "oftype": 0}
    if instance == 0xFFFF and 0 not in data[296:552]:
        found.answers.append(done(ENODEV, ident))
        return "", size
    fields |= {"opcode": 0, "command_id": ident, "length": 1024, "queue_size": 0}
    found.messages.append((v5.CONNECT, ident, fields, data[40:size]))
    return "", size


def _other(found, opcode, ident, data, queue_size):
    common, form, names = COMMANDS.get(opcode, (UNKNOWN, "", ""))
    fields = dict(zip(names.split(), struct.unpack_from("<" + form, data, 4), strict=True))
    legal = queue_size == 0 or (queue_size > 0 and opcode not in ONLY_CONTROL)
    select, feature = fields.get("select", 0), fields.get("feature", 0)
    answer = None
    if not legal:
        pass
    elif opcode == 3:
        answer = done(EINVAL, ident) if select else done(0, ident, 0, MOST_DESCS)
    elif opcode == 4:
        answer = done(EINVAL if select or not 1 <= feature <= MOST_DESCS else 0, ident)
    elif (opcode in (4101, 4102) and select) or (
        opcode == 4105 and fields["size"] not in [1 << n for n in range(64)]
    ):
        answer = done(EINVAL, ident)
    elif opcode == GET_CONFIG_CHANGED and len(found.held) == MOST_HELD:
        answer = done(EBUSY, ident)
    elif opcode == GET_CONFIG_CHANGED:
        found.held.append(ident)
        return
    if answer:
        found.answers.append(answer)
    else:
        known = opcode in COMMANDS
        fields |= {"opcode": opcode, "command_id": ident} if known else {}
        found.messages.append((common, ident, fields, b""))


# -- the other side ---------------------------------------------------------------------------

MOST = {4096: 0xFFFFFFFF, 4098: 0xFFFFFFFF, 4099: 0xFF, 4103: 0xFFFF, 4108: 0xFFFFFFFF}
INVALID = {4106: v5.ECONFOFF}
ERRORS = {
    0: v5.OK,
    13: v5.EACLREJECTED,
    EBUSY: v5.EQUEUEBUSY,
    ENODEV: v5.ENOTGT,
    44: v5.EQUEUEQUOT,
    EPROTO: v5.EBADVQN,
    EOPNOTSUPP: v5.ENOCMD,
}


def completions(data, requests, steps):
    """Read completions.

    Args:
        data: the bytes.
        requests: in flight, by command id: a token, and the sizes of the writable descriptors. A
            token None stands for a request that was abandoned.
        steps: control commands of the wire in flight, by command id, the oldest first: their
            opcode, the token of the command that they belong to, and whether they are its result.

    Returns:
        As of v5; the memory of a token is by the number of the descriptor. Then the steps that
        are left.
    """
    found, steps = Completions("", [], [], [], {}, set()), dict(steps)
    offence = found._replace(error="RemoteProtocolError")
    results = {}
    while len(data) >= 16:
        status, ident, value = struct.unpack_from("<HH4xQ", data)
        if steps and ident == 0:
            ident, status = next(iter(steps)), status or EOPNOTSUPP
        size = 16
        if ident in steps:
            opcode, token, result = steps[ident]
            if not status and value > MOST.get(opcode, value):
                return offence, steps
            del steps[ident]
            if token is None and opcode == GET_CONFIG_CHANGED and not status:
                found.notices.append((v5.ID_CONFIG_CHANGE, value))
            if result:
                other = INVALID.get(opcode, v5.ENOCMD) if status == EINVAL else v5.ENODEV
                results[token] = ERRORS.get(status, other)
            if token is not None and token not in [step[1] for step in steps.values()]:
                found.answers.append((token, results[token]))
        elif ident in requests and ident not in found.free:
            token, sizes = requests[ident]
            start = 16 + 24 * len(sizes)
            if value > sum(sizes):
                return offence, steps
            if len(data) < start:
                break
            descs = table_of(data[16:start])
            if sorted(desc.ident for desc in descs) != [*range(len(sizes))]:
                return offence, steps
            if token is not None and any(desc.length > sizes[desc.ident] for desc in descs):
                return offence, steps
            total = sum(desc.length for desc in descs)
            size = start + total
            if len(data) >= size or total > INLINE:
                place = start
                for desc in descs if token is not None else ():
                    part = data[place : place + desc.length]
                    found.memory.setdefault(token, {})[desc.ident] = part
                    place += desc.length
            if len(data) < size:
                break
            found.free.add(ident)
            if status:
                return found._replace(error="CommandError"), steps
            if token is not None:
                found.used.append((token, value))
        else:
            return offence, steps
        data = data[size:]
    return found, steps
