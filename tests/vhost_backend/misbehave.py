# SPDX-License-Identifier: BSD-3-Clause
"""What a hostile backend does, by name: ``--misbehave NAME[:ARGUMENT…]``.

A misbehaviour takes part in two places: where a request arrives, and where chains are served.
``ROWS`` is what the tests walk.
"""

import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from vof.virtio import vhost_user as vu
from vof.virtio.layout import RING_IDX
from vof.virtio.vhost_user import FRONTEND, HEADER, Message

HUGE = 0xFFFFFFFF
noise = random.Random(1)


class Misbehaviour(NamedTuple):
    """Attributes:
    message: called for each request; returns whether it is dealt with.
    chains: serves chains.
    """

    message: Callable = lambda backend, name, message: False
    chains: Callable = lambda backend, ring, chains: backend.serve(ring, chains)


# -- at a request: what is done instead of an answer -----------------------------------------------


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


FLOOD = 3000


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


# -- in the rings ----------------------------------------------------------------------------------


def packed(ring):
    return hasattr(ring.vringh._vring, "flags")


def lie(change):
    """Use each chain, but write another id or length: ``change(token, written, ring)``."""

    def chains(backend, ring, chains):
        vringh = ring.vringh
        for chain in chains:
            written = backend.disk.serve(chain)
            token, written = change(chain.token, written, ring)
            vringh.lie(token, written)
            backend.flush(ring)

    return Misbehaviour(chains=chains)


def other_id(token, written, ring):
    return ((HUGE & 0xFFFF, token[1]) if packed(ring) else ring.num + 7), written


def free_id(token, written, ring):
    """An id that is in the ring, but not in flight."""
    free = ring.num - 1
    return ((free, token[1]) if packed(ring) else free), written


def twice_used(backend, ring, chains):
    for chain in chains:
        token, written = chain.token, backend.disk.serve(chain)
        ring.vringh.lie(token, written)
        ring.vringh.lie(token, written)
        backend.flush(ring)


def ahead(backend, ring, chains):
    """Say that more was used than there is."""
    layout = ring.vringh._vring
    if packed(ring):
        for at in range(7, len(layout.flags), 8):
            layout.flags[at] ^= 0x8000
    else:
        layout.used[RING_IDX] = (layout.used[RING_IDX] + 3 * ring.num) & 0xFFFF
    ring.signal("CALL")


def no_end(backend, ring, chains):
    """Every available index, used index, id and length there is, one after the other."""
    layout = ring.vringh._vring
    for number in range(0, 1 << 16, 97):
        layout.desc[:] = noise.randbytes(len(layout.desc))
        if not packed(ring):
            layout.used_ring[:] = memoryview(noise.randbytes(8 * ring.num)).cast("I")
            layout.used[RING_IDX] = number
        ring.signal("CALL")


def descriptors(backend, ring, chains):
    """Serve, and write into descriptors: what a split ring's driver wrote is no more there."""
    backend.serve(ring, chains)
    layout = ring.vringh._vring
    if not packed(ring):
        layout.desc[:] = noise.randbytes(len(layout.desc))


def everywhere(backend, ring, chains):
    """Write all over the memory, again and again, and say that there is something."""
    for _ in range(20):
        for *_, size, view in backend.memory.regions:
            data = noise.randbytes(1 << 16)
            for at in range(0, size - len(data) + 1, len(data)):
                view[at : at + len(data)] = data
        ring.signal("CALL")


def wrong_status(backend, ring, chains):
    for chain in chains:
        written = backend.disk.serve(chain)
        chain.writable[-1][-1:] = b"\x77"
        ring.vringh.push(chain, written)
    backend.flush(ring)


def error(backend, ring, chains):
    ring.signal("ERR")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def bells(fill):
    """Serve, while a thread plays with both eventfds of the ring."""

    def chains(backend, ring, chains):
        if threading.active_count() == 1:
            fds = {name: os.dup(ring.fds[name]) for name in ("CALL", "KICK")}
            threading.Thread(target=fill, kwargs=fds, daemon=True).start()
        backend.serve(ring, chains)

    return Misbehaviour(chains=chains)


def ring_bells(CALL, KICK):
    while True:
        os.eventfd_write(CALL, 1)


def fill_bells(CALL, KICK):
    """Leave no room in either counter."""
    while True:
        for fd in (CALL, KICK):
            try:
                os.eventfd_write(fd, (1 << 64) - 2)
            except BlockingIOError:
                pass


def empty_bells(CALL, KICK):
    """Make both descriptors blocking, and be faster than whoever reads."""
    os.set_blocking(CALL, True)
    os.set_blocking(KICK, True)
    while True:
        os.eventfd_read(CALL)


RINGS = {
    "never": Misbehaviour(chains=lambda backend, ring, chains: None),
    "other_id": lie(other_id),
    "free_id": lie(free_id),
    "length": lie(lambda token, written, ring: (token, HUGE)),
    "longer": lie(lambda token, written, ring: (token, written + 1)),
    "shorter": lie(lambda token, written, ring: (token, 0)),
    "twice_used": Misbehaviour(chains=twice_used),
    "ahead": Misbehaviour(chains=ahead),
    "no_end": Misbehaviour(chains=no_end),
    "descriptors": Misbehaviour(chains=descriptors),
    "everywhere": Misbehaviour(chains=everywhere),
    "wrong_status": Misbehaviour(chains=wrong_status),
    "error": Misbehaviour(chains=error),
    "die": Misbehaviour(chains=die),
    "ring_bells": bells(ring_bells),
    "fill_bells": bells(fill_bells),
    "empty_bells": bells(empty_bells),
}

OTHERS = {
    "value": value,
    "config": config,
    "inflight": inflight,
    "shrink": shrink,
    "flood": flood,
}


def at(act, name):
    """Do ``act`` when a request of this name arrives."""

    def message(backend, got, message):
        if got != name:
            return False
        act(backend, got, message)
        return True

    return Misbehaviour(message)


def find(text):
    """The misbehaviour of a name with its arguments. Raises KeyError."""
    name, *more = text.split(":")
    if name in RINGS:
        return RINGS[name]
    return (partial(at, AT[name]) if name in AT else OTHERS[name])(*more)
