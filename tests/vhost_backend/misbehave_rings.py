# SPDX-License-Identifier: BSD-3-Clause
"""Hostile backends: what they do in rings, to memory and to eventfds."""

import os
import random
import signal
import threading
import time

from tests.vhost_backend.misbehaviour import Misbehaviour
from vof.virtio.layout import RING_IDX

HUGE = 0xFFFFFFFF
noise = random.Random(1)


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
    """Serve, and overwrite descriptors of what was used: so a split ring's driver gets them."""
    layout = ring.vringh._vring
    for chain in chains:
        at = 16 * chain.token
        ring.vringh.push(chain, backend.disk.serve(chain))
        layout.desc[at : at + 16] = noise.randbytes(16)
        backend.flush(ring)


def everywhere(backend, ring, chains):
    """Write all over the memory, again and again, and say that there is something."""
    for _ in range(20):
        scribble(backend)
        ring.signal("CALL")


def poison(backend, ring, chains):
    """Leave nothing to whoever comes next but noise, in the rings and of what is in flight."""
    scribble(backend)
    if backend.inflight is not None:
        backend.inflight[:] = noise.randbytes(len(backend.inflight))
    die()


def ghost(backend, ring, chains):
    """Leave, and go on writing into the memory for a while."""
    if os.fork():
        raise EOFError("leaves a ghost")
    os.closerange(0, 1024)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        scribble(backend)
    os._exit(0)


def scribble(backend):
    """Write all over the memory."""
    for *_, size, view in backend.memory.regions:
        data = noise.randbytes(1 << 16)
        for at in range(0, size - len(data) + 1, len(data)):
            view[at : at + len(data)] = data


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


def bells(fill, serve=True):
    """Serve, or not, while a thread plays with both eventfds of the ring."""

    def chains(backend, ring, chains):
        if threading.active_count() == 1:
            fds = {name: os.dup(ring.fds[name]) for name in ("CALL", "KICK")}
            threading.Thread(target=fill, kwargs=fds, daemon=True).start()
        if serve:
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


def steal_bells(CALL, KICK):
    """Make the descriptor that is read at the other side block, and be faster than the reader."""
    os.set_blocking(CALL, True)
    while True:
        os.eventfd_write(CALL, 1)
        try:
            os.preadv(CALL, [bytearray(8)], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            pass


def stuck_kick(backend, ring, chains):
    """Serve, and ask for a kick that cannot be written any more."""
    backend.serve(ring, chains)
    ring.vringh.notify_enable()
    os.set_blocking(ring.fds["KICK"], True)
    os.eventfd_write(ring.fds["KICK"], (1 << 64) - 2)
    while True:
        signal.pause()


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
    "poison": Misbehaviour(chains=poison),
    "ghost": Misbehaviour(chains=ghost),
    "wrong_status": Misbehaviour(chains=wrong_status),
    "error": Misbehaviour(chains=error),
    "die": Misbehaviour(chains=die),
    "ring_bells": bells(ring_bells),
    "fill_bells": bells(fill_bells),
    "stuck_kick": Misbehaviour(chains=stuck_kick),
    "only_bells": bells(ring_bells, serve=False),
    "steal_bells": bells(steal_bells, serve=False),
}
