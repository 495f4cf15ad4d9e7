# SPDX-License-Identifier: BSD-3-Clause
"""Queue pairs within one process: what an adapter with remote memory access does, and as strictly.

Memory is reached through registrations alone: key, rights and bounds are checked at each access,
and a key is dead once it was taken back, or the last queue pair of its domain is closed. A message
needs a receive that is large enough. Whatever an adapter would refuse puts the queue pair into the
error state, both of them where the peer's memory was concerned, and is noted in ``faults``: between
correct peers there is none.
"""

import os
import secrets
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from vof.errors import ConnectionLost, VofError
from vof.memory import Region, UserRegion
from vof.protocol.keyed import READ, Post, Transfer
from vof.protocol.registered import LOCAL, REMOTE_READ, REMOTE_WRITE, Domain, Keys, Memory
from vof.transport.base import LARGEST
from vof.transport.queue_pair import QueuePair

DEPTH = 256
READS = 16

faults: list[str] = []
"""What was refused, in this process; whoever looks clears it."""


ENDED = "the peer ended the connection"


class Fault(VofError):
    """What an adapter refuses.

    Attributes:
        told: what the other side is told.
    """

    def __init__(self, message: str, told: str = ENDED) -> None:
        super().__init__(message)
        self.told = told


class _Grant(NamedTuple):
    """One registration."""

    region: Region | UserRegion
    rights: int


class LoopbackDomain(Domain):
    """Keys of this process, which are good for the pairs of this domain.

    Attributes:
        pairs: that are open.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self._over = False
        self._grants: dict[int, _Grant] = {}

    def register(self, region: Region | UserRegion, rights: int) -> Keys:
        """Give a region a new key, which is hard to guess."""
        if self._over:
            raise ConnectionLost("nothing is connected any more")
        key = secrets.randbits(32)
        while key in self._grants:
            key = secrets.randbits(32)
        self._grants[key] = _Grant(region, rights)
        return Keys(key, key)

    def deregister(self, keys: Keys) -> None:
        """Let a key be of no use any more."""
        self._grants.pop(keys.remote, None)

    def reach(self, address: int, length: int, key: int, rights: int) -> memoryview:
        """Return memory by its key. Raises Fault."""
        grant = self._grants.get(key)
        if grant is None:
            raise Fault(f"key 0x{key:x} is dead")
        if rights != grant.rights and rights != LOCAL:
            raise Fault(f"key 0x{key:x} gives rights {grant.rights}, not {rights}")
        offset = address - grant.region.address
        if not length or offset < 0 or offset + length > grant.region.size:
            raise Fault(f"{length} bytes at 0x{address:x} are not within key 0x{key:x}")
        return grant.region.view[offset : offset + length]

    def leave(self) -> None:
        """A pair was closed."""
        self.pairs -= 1
        if not self.pairs:
            self._over = True
            self._grants.clear()


class LoopbackPair(QueuePair):
    """One end. ``join`` connects two.

    Attributes:
        held: posts are not carried out by themselves, but by ``carry_out``.
        peer: the other end.
    """

    largest = LARGEST

    def __init__(self, memory: Memory, depth: int = DEPTH, reads: int = READS) -> None:
        assert isinstance(memory.domain, LoopbackDomain)
        self.memory = memory
        self.depth = depth
        self.reads = reads
        self.held = False
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.peer: LoopbackPair
        self._domain = memory.domain
        self._domain.pairs += 1
        self._receives: deque[int] = deque()
        self._posted: deque[Post] = deque()
        self._under_way: deque[bool] = deque()  # whether each is a read
        self._done = self._told = 0
        self._attends = True
        self._messages: list[bytes] = []
        self._error: VofError | None = None
        self._armed = self._awake = False

    def receives(self, count: int, size: int) -> None:
        """Post receives. See ``QueuePair``."""
        self._receives.extend([size] * count)

    def post(self, posts: Sequence[Post]) -> None:
        """Carry posts out, unless they are ``held``. See ``QueuePair``."""
        self._posted += posts
        self._under_way += [type(post) is tuple and post[0] == READ for post in posts]
        assert len(self._under_way) <= self.depth, "more posts than the queue pair has room for"
        assert sum(self._under_way) <= self.reads, "more reads than were agreed on"
        if not self.held:
            self.carry_out()

    def carry_out(self) -> None:
        """Carry out what was posted."""
        posted = self._posted
        while posted and self._error is None:
            post = posted.popleft()
            try:
                if type(post) is tuple:
                    self._transfer(post)
                else:
                    assert type(post) is bytes
                    self._send(post)
            except Fault as fault:
                faults.append(str(fault))
                self._fail(f"the queue pair is in error: {fault}", fault.told)
                return
            self._done += 1
            if self._attends or (type(post) is tuple and post[0] == READ):
                self._told = self._done
                self._wake()

    def _transfer(self, post: Transfer) -> None:
        kind, address, length, local, there, remote = post
        here = self._domain.reach(address, length, local, LOCAL)
        rights = REMOTE_READ if kind == READ else REMOTE_WRITE
        try:
            memory = self.peer._domain.reach(there, length, remote, rights)
        except Fault as fault:
            fault.told = "the peer went for memory that is not open to it"
            raise
        if kind == READ:
            here[:] = memory
        else:
            memory[:] = here

    def _send(self, message: bytes) -> None:
        peer = self.peer
        if not peer._receives:
            raise Fault(f"no receive is posted for a message of {len(message)} bytes")
        size = peer._receives.popleft()
        if len(message) > size:
            told = f"a message of {len(message)} bytes, of {size} at most"
            raise Fault(f"a message of {len(message)} bytes meets a receive of {size}", told)
        peer._messages.append(message)
        peer._wake()

    def poll(self) -> tuple[int, list[bytes]]:
        """Take what completed. See ``QueuePair``."""
        messages = self._messages
        done = self._done if messages or self._error else self._told
        if done or messages:
            self._done -= done
            self._told, self._messages = 0, []
            for _ in range(done):
                self._under_way.popleft()
            return done, messages
        if self._error is not None:
            raise self._error
        return 0, messages

    def attend(self, posts: bool) -> None:
        """Tell of posts, or only with a read or a message. See ``QueuePair``."""
        self._attends = posts
        if posts and self._done:
            self._told = self._done
            self._wake()

    def arm(self) -> None:
        """Be readable for what completes from here on. See ``QueuePair``."""
        self._armed = True

    def disarm(self) -> None:
        """Be readable no more. See ``QueuePair``."""
        self._armed = False
        if self._awake:
            os.eventfd_read(self.fd)
            self._awake = False

    def _wake(self) -> None:
        if self._armed and not self._awake and self.fd >= 0:
            self._awake = True
            os.eventfd_write(self.fd, 1)

    def _fail(self, why: str, told: str = ENDED) -> None:
        """Enter the error state; the first reason stays. The peer notices, and is told."""
        if self._error is None:
            self._error = ConnectionLost(why)
            self._posted.clear()
            self._receives.clear()
            self._wake()
            self.peer._fail(told)

    def kill(self) -> None:
        """Enter the error state. See ``QueuePair``."""
        self._fail("the queue pair was ended")

    def close(self) -> None:
        """Let go of everything. See ``QueuePair``."""
        self.kill()
        self._domain.leave()
        os.close(self.fd)
        self.fd = -1


def join(near: Memory, **limits: int) -> tuple[LoopbackPair, LoopbackPair]:
    """Return a queue pair of this memory, and one to which it is connected, in a domain of its own.

    Args:
        near: memory of the first.
        limits: see ``LoopbackPair``.
    """
    pairs = LoopbackPair(near, **limits), LoopbackPair(Memory(LoopbackDomain()), **limits)
    pairs[0].peer, pairs[1].peer = pairs[1], pairs[0]
    return pairs
