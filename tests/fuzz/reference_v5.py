# SPDX-License-Identifier: BSD-3-Clause
"""What the parsers must make of bytes that are there whole: slow, plain, and sharing no code.

Nothing here knows buffers, pauses or cuts. Only numbers come from the tables of the protocol.
"""

import struct
from typing import NamedTuple

from vof.protocol import v5

HEAD = struct.Struct("<HHIII")
INLINE = 16 * 1024
"""A larger payload is in place as far as it came; a smaller one when it is complete."""


class Commands(NamedTuple):
    """What a target makes of bytes, when it answers no request."""

    error: str
    chains: list[tuple[int, bytes, int]]  # command id, readable part, writable bytes
    messages: list[tuple[int, int, bytes]]  # opcode, command id, body
    answers: bytes


def refusal(queue_size, request_bytes, inflight, out_length, in_length):
    if not queue_size:
        return v5.ENOCMD
    if out_length > request_bytes:
        return v5.EOUTVQBUF
    if in_length > request_bytes:
        return v5.EINVQBUF
    return v5.ECMDQUOT if inflight == queue_size else 0


def commands(data, queue_size, request_bytes):
    """Read commands; a ``queue_size`` below 0 stands for a connection before CONNECT."""
    found = Commands("", [], [], b"")
    while len(data) >= 16:
        opcode, command_id, _, out_length, in_length = HEAD.unpack_from(data)
        if opcode != v5.VQ or queue_size < 0:
            size = out_length if opcode == v5.CONNECT else 0
            if size not in (0, 1024):
                return found._replace(error="RemoteProtocolError")
            if len(data) < 16 + size:
                break
            found.messages.append((opcode, command_id, data[16 : 16 + size]))
        else:
            size = out_length
            if len(data) < 16 + size:
                break
            inflight = len(found.chains)
            status = refusal(queue_size, request_bytes, inflight, out_length, in_length)
            if status:
                answers = found.answers + HEAD.pack(status, command_id, 0, 0, 0)
                found = found._replace(answers=answers)
            else:
                found.chains.append((command_id, data[16 : 16 + size], in_length))
        data = data[16 + size :]
    return found


class Completions(NamedTuple):
    """What an initiator makes of bytes."""

    error: str
    used: list[tuple[object, int]]
    answers: list[tuple[object, int]]
    notices: list[tuple[int, int]]  # command id, generation
    memory: dict[object, bytes]  # of each token, as far as it was written
    free: set[int]


def completions(data, inflight, control):
    """Read completions.

    Args:
        data: the bytes.
        inflight: by command id, a token, and the size of its writable part: None for a control
            command. A token None stands for a request that was abandoned.
        control: whether it is a control queue.
    """
    found = Completions("", [], [], [], {}, set())
    offence = found._replace(error="RemoteProtocolError")
    while len(data) >= 16:
        status, command_id, second, length, in_length = HEAD.unpack_from(data)
        size = 0
        if command_id not in inflight or command_id in found.free:
            if not control or command_id < 0xFF00:
                return offence
            found.notices.append((command_id, second))
        elif inflight[command_id][1] is None:
            found.answers.append((inflight[command_id][0], status))
            found.free.add(command_id)
        elif status:
            return found._replace(error="CommandError")
        elif length > in_length or in_length > inflight[command_id][1]:
            return offence
        else:
            token, size = inflight[command_id][0], in_length
            whole = len(data) >= 16 + size
            if token is not None and (whole or size > INLINE):
                found.memory[token] = data[16 : 16 + size]
            if not whole:
                break
            if token is not None:
                found.used.append((token, length))
            found.free.add(command_id)
        data = data[16 + size :]
    return found
