# SPDX-License-Identifier: BSD-3-Clause
"""What keyed streams must make of messages: slow, plain, and sharing no code with them.

Only numbers come from the tables of the protocol.
"""

import errno
import struct
from typing import NamedTuple

from vof.protocol import v0, v5

V5 = struct.Struct("<HHIII")
V5_DESC = struct.Struct("<QII")
V0 = struct.Struct("<HHIH6x")
V0_DESC = struct.Struct("<QIHHI4x")
V0_DONE = struct.Struct("<HHHHQ")
REMOTE = "RemoteProtocolError"


class Found(NamedTuple):
    """What a target makes of messages, when it answers no request.

    Attributes:
        error: that it raises.
        chains: command id, readable and writable bytes of each request.
        messages: number and command id of each other command that is handed out.
        sent: completions.
        read: address, length and key of what it reads.
        stuck: it goes on when a request ends.
    """

    error: str
    chains: list
    messages: list
    sent: list
    read: list
    stuck: bool = False


def v5_commands(messages, queue_size, request_bytes, eager):
    """Read messages; a ``queue_size`` below 0 stands for a connection before CONNECT."""
    found = Found("", [], [], [], [])
    for message in messages:
        bad = found._replace(error=REMOTE)
        if len(message) < 16 or len(message) % 16:
            return bad
        opcode, ident, first, out, into = V5.unpack_from(message)
        descs = list(V5_DESC.iter_unpack(message[16:]))
        if queue_size < 0 or opcode not in (v5.VQ, v5.VQ_KEYED_EAGER_BUF):
            expected = []
            if opcode == v5.CONNECT and out:
                if out != 1024:
                    return bad
                expected = [1024]
            if opcode == v5.GET_KEYED_EAGER_BUF:
                expected = [descs[0][1]] if descs else [None]
            if opcode in v5.COMMANDS and [length for _, length, _ in descs] != expected:
                return bad
            if opcode == v5.CONNECT:
                found.read.extend(descs)
            found.messages.append((opcode, ident))
            continue
        place = None
        if opcode == v5.VQ_KEYED_EAGER_BUF:
            place, out, into = first, out, into
        described = 0 if place is not None else out
        edges, at = {0}, 0
        for _, length, _ in descs:
            at += length
            edges.add(at)
        if len(descs) > 32 or any(not d[1] for d in descs):
            return bad
        if at != described + into or described not in edges:
            return bad
        status = 0
        if not queue_size or (place is not None and not eager):
            status = v5.ENOCMD
        elif out > request_bytes or (place is not None and place + out > eager):
            status = v5.EOUTVQBUF
        elif into > request_bytes:
            status = v5.EINVQBUF
        elif len(found.chains) == queue_size:
            status = v5.ECMDQUOT
        if status:
            found.sent.append(V5.pack(status, ident, 0, 0, 0))
            continue
        found.chains.append((ident, out, into))
        for desc in descs:
            if described > 0:
                found.read.append(desc)
                described -= desc[1]
    return found


HERE = {v0.GET_FEATURE, v0.SET_FEATURE, v0.GET_CONFIG_CHANGED}
DIFFERENT = {v0.GET_DEVICE_FEATURE, v0.SET_DRIVER_FEATURE, v0.SET_QUEUE_SIZE}


def v0_requests(messages, queue_size, request_bytes):
    """Read messages that are requests; others are left out."""
    found = Found("", [], [], [], [])
    for message in messages:
        if len(message) < 16:
            return found._replace(error=REMOTE)
        opcode, ident, _, ndesc = V0.unpack_from(message)
        if opcode != v0.VRING:
            if opcode in v0.COMMANDS and len(message) != 16:
                return found._replace(error=REMOTE)
            continue
        if len(message) != 16 + 24 * ndesc or ndesc > 128:
            return found._replace(error=REMOTE)
        descs = list(V0_DESC.iter_unpack(message[16:]))
        parts = [[d for d in descs if bool(d[3] & 2) == writable] for writable in (False, True)]
        out, into = (sum(d[1] for d in part) for part in parts)
        status = 0
        if not queue_size:
            status = errno.EOPNOTSUPP
        elif out > request_bytes or into > request_bytes or not descs:
            status = errno.EINVAL
        if status:
            found.sent.append(V0_DONE.pack(status, ident, len(parts[1]), 0, 0))
            continue
        if len(found.chains) == queue_size:
            return found._replace(stuck=True)
        found.chains.append((ident, out, into))
        found.read.extend((d[0], d[1], d[4]) for d in parts[0] if d[1])
    return found


def v5_completions(messages, inflight, eager):
    """Read completions of requests, each a token and its writable bytes by command id.

    Return the error, and what is used.
    """
    used, inflight = [], dict(inflight)
    for message in messages:
        if len(message) != 16:
            return REMOTE, used
        status, ident, first, length, into = V5.unpack(message)
        if ident not in inflight:
            return REMOTE, used
        if status:
            return "CommandError", used
        token, capacity = inflight[ident]
        if ident in eager:
            length, into = first, capacity
        if not length <= into <= capacity:
            return REMOTE, used
        del inflight[ident]
        used.append((token, length))
    return "", used


def v0_completions(messages, inflight, eager):
    """The same of dialect v0, where nothing is eager."""
    assert not eager
    used, inflight = [], dict(inflight)
    for message in messages:
        if len(message) != 16:
            return REMOTE, used
        status, ident, _, _, value = V0_DONE.unpack(message)
        if ident not in inflight or value > inflight[ident][1]:
            return REMOTE, used
        if status:
            return "CommandError", used
        used.append((inflight.pop(ident)[0], value))
    return "", used
