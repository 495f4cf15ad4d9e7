# SPDX-License-Identifier: BSD-3-Clause
"""Hostile backends: how they answer requests, and what they ask themselves."""

import os
import random
import signal
import socket
import threading

from tests.vhost_backend.misbehaviour import Misbehaviour
from vof.virtio import vhost_user as vu
from vof.virtio.vhost_user import FRONTEND, HEADER, Message

HUGE = 0xFFFFFFFF
FLOOD = 3000
"""Messages."""
noise = random.Random(1)


def close(backend, name, message):
    raise EOFError("closes")


def hang(*_):
    while True:
        signal.pause()


def refuse(backend, name, message):
    backend.reply(message.number, vu.U64.pack(1))


def raw(number, flags, size, data=b""):
    """Answer with any header."""

    def act(backend, name, message):
        with_number = message.number if number is None else number
        backend.sock.sendall(HEADER.pack(with_number, flags, size) + data)

    return act


def half(backend, name, message):
    backend.sock.sendall(Message(message.number, vu.FLAG_REPLY).encode()[:5])
    hang()


def garbage(backend, name, message):
    backend.sock.sendall(noise.randbytes(5000))


def twice(backend, name, message):
    backend.answer(name, message)
    backend.answer(name, message)


def with_fds(count):
    """Answer with descriptors that nobody asked for."""

    def act(backend, name, message):
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        ack = vu.U64.pack(0)
        payload = ack if FRONTEND[name].reply is not vu.CONFIG else message.payload
        backend.reply(message.number, payload, fds)
        for fd in fds:
            os.close(fd)

    return act


AT = {
    "close": close,
    "hang": hang,
    "refuse": refuse,
    "version": raw(None, 2 | vu.FLAG_REPLY, 8, bytes(8)),
    "giant": raw(None, vu.VERSION | vu.FLAG_REPLY, HUGE, bytes(1 << 16)),
    "large": raw(None, vu.VERSION | vu.FLAG_REPLY, vu.MOST_PAYLOAD, bytes(vu.MOST_PAYLOAD)),
    "empty": raw(None, vu.VERSION | vu.FLAG_REPLY, 0),
    "other": raw(99, vu.VERSION | vu.FLAG_REPLY, 8, bytes(8)),
    "request": raw(None, vu.VERSION, 8, bytes(8)),
    "half": half,
    "garbage": garbage,
    "twice": twice,
    "fds": with_fds(vu.MOST_FDS),
    "many_fds": with_fds(200),
}
"""``NAME:REQUEST``."""


def value(name, number):
    """Answer a request with another number: ``value:REQUEST:NUMBER``."""

    def message(backend, got, message):
        if got != name:
            return False
        backend.reply(message.number, vu.U64.pack(int(number, 0)))
        return True

    return Misbehaviour(message)


def config(size):
    """Answer GET_CONFIG with so many bytes of configuration: ``config:SIZE``."""

    def message(backend, name, message):
        if name != "GET_CONFIG":
            return False
        tail = bytes(range(256)) * 16
        backend.reply(message.number, vu.CONFIG.pack(0, int(size), 0, tail=tail[: int(size)]))
        return True

    return Misbehaviour(message)


def inflight(size, offset="0", file="memfd"):
    """Answer GET_INFLIGHT_FD with any area, of a memfd, another file or none."""

    def message(backend, name, message):
        if name != "GET_INFLIGHT_FD":
            return False
        made = {"memfd": lambda: os.memfd_create("x"), "null": lambda: os.open(os.devnull, 0)}
        fds = [made[file]()] if file in made else []
        payload = vu.INFLIGHT.pack(int(size, 0), int(offset, 0), 1, 1)
        backend.reply(message.number, payload, fds)
        for fd in fds:
            os.close(fd)
        return True

    return Misbehaviour(message)


def shrink():
    """Try to take the memory away that was shared; the log says whether it could."""

    def message(backend, name, message):
        if name in ("SET_MEM_TABLE", "ADD_MEM_REG"):
            for fd in message.fds:
                try:
                    os.ftruncate(fd, 0)
                    backend.log("shrunk")
                except PermissionError:
                    backend.log("sealed")
        return False

    return Misbehaviour(message)


def at(act, name):
    """Do ``act`` when a request of this name arrives."""

    def message(backend, got, message):
        if got != name:
            return False
        act(backend, got, message)
        return True

    return Misbehaviour(message)


# -- on the backend's own socket ----------------------------------------------------------------


def flooded(make):
    """Send many messages while everything else goes on; the answers are not read."""

    def flood(sock):
        fd = os.open(os.devnull, os.O_RDONLY)
        try:
            for number in range(FLOOD):
                data, count = make(number)
                socket.send_fds(sock, [data], [fd] * count)
        except OSError:
            pass
        finally:
            os.close(fd)

    def message(backend, name, message):
        if name != "SET_BACKEND_REQ_FD":
            return False
        backend.answer(name, message)
        backend.selector.unregister(backend.requests)
        threading.Thread(target=flood, args=(backend.requests,), daemon=True).start()
        return True

    return Misbehaviour(message)


def asking(number, payload=b"", fds=0, flags=vu.FLAG_NEED_REPLY):
    return lambda _: (Message(number, flags, payload).encode(), fds)


def rows_of_floods():
    map_all = vu.MMAP.pack(0, 0, 0, 1 << 40, 1)
    requests = {name: row.number for name, row in vu.BACKEND.items()}
    return {
        "HOST_NOTIFIER": asking(requests["VRING_HOST_NOTIFIER_MSG"], vu.AREA.pack(0, 4096, 0), 1),
        "SHARED_OBJECT": asking(requests["SHARED_OBJECT_LOOKUP"], vu.UUID.pack(bytes(16)), 1),
        "SHMEM_MAP": asking(requests["SHMEM_MAP"], map_all, 1),
        "unknown": lambda number: asking(1000 + number)(0),
        "CONFIG_CHANGE_MSG": asking(requests["CONFIG_CHANGE_MSG"]),
        "quiet": asking(requests["CONFIG_CHANGE_MSG"], flags=0),
        "fds": asking(requests["VRING_CALL"], vu.STATE.pack(0, 0), vu.MOST_FDS),
        "many_fds": asking(requests["VRING_CALL"], vu.STATE.pack(0, 0), 200),
        "replies": asking(requests["CONFIG_CHANGE_MSG"], flags=vu.FLAG_REPLY),
        "giant": lambda number: (HEADER.pack(2, vu.VERSION, HUGE) + bytes(4096), 0),
        "garbage": lambda number: (noise.randbytes(4096), 1),
    }


FLOODS = rows_of_floods()


def flood(what):
    """``flood:WHAT``."""
    return flooded(FLOODS[what])
