# SPDX-License-Identifier: BSD-3-Clause
"""Memory that a queue pair may touch: where it is, by which keys, and places in it to use again.

Registering costs far more than using, so it is done for whole regions, which grow in number with
need, and places in them are kept for the next request.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import Any, NamedTuple, TypeAlias

from vof.errors import InvalidArgument, OutOfMemory, VofError
from vof.memory import Buffer, Pool, Region, UserRegion, address_of, whole

LOCAL, REMOTE_READ, REMOTE_WRITE = 0, 1, 2
"""Rights that a key gives to the peer: none, to read, to write."""

Desc: TypeAlias = tuple[int, int, int]
"""Memory of one side as the other is told of it: address, length, remote key."""

REGION_BYTES = 64 * 1024
MOST_MORE = 16 << 20
"""Memory begins with so much, as each page costs time, and is doubled, up to so much at a time."""
LEAST = 512
"""Places have 2 ** n bytes, and so many at least."""
FIRST_PLACES = 8
SLAB_BYTES = 256 * 1024
"""The first slab of a kind has so many places, and each slab as many as there are already, up to so
many bytes. What is so large that four fill a slab stands alone, and has what it needs."""
SLABS = 64
"""A slab takes no more of its pool than one in so many bytes."""
SIZES = 64
"""Sizes of small places that are remembered."""
SPARES = 16
"""Large places of one size that are kept, of two sizes."""


class Keys(NamedTuple):
    """What a registration gives.

    Attributes:
        local: for transfers of this side.
        remote: for the peer; without meaning where it has no rights.
    """

    local: int
    remote: int


class Domain(ABC):
    """Where memory is registered, and so what queue pairs may touch: a protection domain.

    The queue pairs of one driver's device share one, so that a buffer is known on every queue. At a
    target, keys that give rights must not be of use to another peer.
    """

    @abstractmethod
    def register(self, region: Region | UserRegion, rights: int) -> Keys:
        """Make a region usable; it may be registered several times, with different rights.

        The region stays in memory as long as the registration, whoever lets go of it.

        Args:
            region: all of it; addresses on the wire are those of this process.
            rights: LOCAL, REMOTE_READ or REMOTE_WRITE: what the peer may do by the remote key.

        Raises:
            OutOfMemory: the system refuses; says what is missing and what to do.
            VofError: the last queue pair of the domain is closed.
        """

    @abstractmethod
    def deregister(self, keys: Keys) -> None:
        """Take a registration back: nothing touches the region by its keys from here on.

        All end by themselves when the last queue pair of the domain is closed; then this does
        nothing.
        """


class Registration(NamedTuple):
    """A region that is registered.

    Attributes:
        start: address of its first byte.
        stop: address behind its last.
        keys: all of them.
        local: key for transfers of this side.
        read: key by which the peer may read; -1 for none.
        write: key by which the peer may write; -1 for none.
        region: the region.
    """

    start: int
    stop: int
    keys: list[Keys]
    local: int
    read: int
    write: int
    region: Region | UserRegion


def own_region(size: int) -> Region:
    """Return a region that nobody maps but us. Raises OutOfMemory."""
    try:
        region = Region(size)
    except OSError as error:
        raise OutOfMemory(f"{size} bytes of memory cannot be had: {error.strerror}") from None
    region.close()
    return region


class Memory(Pool):
    """Registered regions; a pool that grows.

    Attributes:
        domain: where they are registered.
    """

    def __init__(self, domain: Domain, rights: int = LOCAL) -> None:
        """Begin with no region.

        Args:
            domain: where regions are registered.
            rights: what the peer may do with them; of REMOTE_READ | REMOTE_WRITE, each right has a
                key of its own.
        """
        self.domain = domain
        self._rights = rights
        self._starts: list[int] = []
        self._known: list[Registration] = []
        self._own: list[Region] = []

    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes. See ``Pool``.

        Raises:
            VofError: more would have to be registered; see ``Domain.register``.
        """
        room = whole(size)
        for region in reversed(self._own):
            if region.used + room <= region.size:
                try:
                    return region.alloc(size)
                except MemoryError:
                    pass  # in no one piece
        more = min(sum(region.size for region in self._own), MOST_MORE)
        region = own_region(max(REGION_BYTES, room, more))
        self.add(region)
        self._own.append(region)
        return region.alloc(size)

    def add(self, region: Region) -> Registration:
        """Register a region that somebody else made, such as that of a local device. Idempotent.

        Raises:
            VofError: see ``Domain.register``.
        """
        return self._at(region.address) or self._add(region, self._rights)

    def register(self, buffer: Any, *, readable: bool = True, writable: bool = True) -> UserRegion:
        """Let memory of the caller's own be used where it is. See ``Pool``."""
        region = UserRegion(buffer, self._forget)
        rights = readable * REMOTE_READ | writable * REMOTE_WRITE
        try:
            place = bisect_right(self._starts, region.address + region.size - 1) - 1
            if place >= 0 and self._known[place].stop > region.address:
                raise InvalidArgument(f"of {region.size} bytes, some are registered already")
            self._add(region, self._rights & rights)
        except VofError:
            region.view.release()
            raise
        return region

    def _add(self, region: Region | UserRegion, rights: int) -> Registration:
        """Register a region that is not known."""
        keys: list[Keys] = []
        try:
            for right in (REMOTE_READ, REMOTE_WRITE) if rights else (LOCAL,):
                if right & rights == right:
                    keys += [self.domain.register(region, right)]
        except VofError:
            for each in keys:
                self.domain.deregister(each)
            raise
        found = Registration(
            region.address,
            region.address + region.size,
            keys,
            keys[-1].local,
            keys[0].remote if rights & REMOTE_READ else -1,
            keys[-1].remote if rights & REMOTE_WRITE else -1,
            region,
        )
        place = bisect_right(self._starts, found.start)
        self._starts.insert(place, found.start)
        self._known.insert(place, found)
        return found

    def _forget(self, region: Region | UserRegion) -> None:
        """Take the registration of a region back."""
        place = self._starts.index(region.address)
        del self._starts[place]
        for keys in self._known.pop(place).keys:
            self.domain.deregister(keys)

    def find(self, buffer: Buffer) -> tuple[int, Registration] | None:
        """Return where a buffer is, or None: it is not in registered memory.

        Args:
            buffer: not empty. A view that is read-only counts as not there.
        """
        if type(buffer) is not memoryview or buffer.readonly:
            return None
        address = address_of(buffer)
        found = self._at(address)
        return None if found is None or address + len(buffer) > found.stop else (address, found)

    def _at(self, address: int) -> Registration | None:
        place = bisect_right(self._starts, address) - 1
        if place < 0 or address >= self._known[place].stop:
            return None
        return self._known[place]

    def trim(self) -> None:
        """Let go of regions of our own in which nothing is in use."""
        for region in [region for region in self._own if not region.used]:
            self._own.remove(region)
            self._forget(region)


def home(pool: Pool, view: memoryview) -> Region:
    """Return the region in which a view of a pool lies."""
    if isinstance(pool, Region):
        return pool
    assert isinstance(pool, Memory)
    found = pool.find(view)
    assert found is not None
    region = found[1].region
    assert isinstance(region, Region)
    return region


class Slot(NamedTuple):
    """A place in registered memory.

    Attributes:
        view: its bytes.
        address: of the first.
        at: how the region is registered.
        kind: which others are as large.
    """

    view: memoryview
    address: int
    at: Registration
    kind: int


class Slots:
    """Places of one stream, used again and again. Small ones are cut from slabs."""

    def __init__(self, memory: Memory, pool: Pool | None = None) -> None:
        """Begin with none.

        Args:
            memory: knows the keys.
            pool: where they are cut from, if not from ``memory`` itself: a region, or other memory.
        """
        self._memory = memory
        self._pool = pool or memory
        self._slab = min(SLAB_BYTES, self._pool.size // SLABS)
        self._small = self._slab // 4
        self._made: dict[int, int] = {}  # bytes of slabs, by kind
        self._free: dict[int, list[Slot]] = {}
        self._sizes: dict[int, list[Slot]] = {}  # the same, by what was asked for
        self._spares: dict[int, list[Slot]] = {}

    def take(self, size: int) -> Slot:
        """Return a place of at least ``size`` bytes; what it holds is whatever it held before.

        Raises:
            VofError: see ``Memory.alloc``.
            MemoryError: the pool has no more now.
        """
        if free := self._sizes.get(size):
            return free.pop()
        kind = max(LEAST, 1 << (size - 1).bit_length())
        if kind > self._small:
            kind = whole(size)
            spares = self._spares.get(kind)
            return spares.pop() if spares else self._cut(kind, kind)
        if len(self._sizes) >= SIZES:
            self._sizes.clear()
        free = self._sizes[size] = self._free.setdefault(kind, [])
        if free:
            return free.pop()
        made = self._made.get(kind, 0)
        more = min(made or kind * FIRST_PLACES, self._slab)
        slot = self._cut(kind, more)
        self._made[kind] = made + more
        return slot

    def _cut(self, kind: int, size: int) -> Slot:
        """Make new places of a kind, from a piece of so many bytes."""
        try:
            view = self._pool.claim(size)
        except OutOfMemory:
            self.trim()
            view = self._pool.claim(size)
        found = self._memory.find(view)
        if found is None:
            found = address_of(view), self._memory.add(home(self._pool, view))
        address, at = found
        slots = [
            Slot(view[start : start + kind], address + start, at, kind)
            for start in reversed(range(0, size - kind + 1, kind))
        ]
        last = slots.pop()
        if slots:
            self._free.setdefault(kind, []).extend(slots)
        return last

    def give(self, slot: Slot) -> None:
        """Give a place back: nobody looks at it any more, and no transfer is under way there."""
        kind = slot.kind
        if self._pool.contended:
            return
        if free := self._free.get(kind):
            free.append(slot)
            return
        if kind <= self._small:
            self._free.setdefault(kind, []).append(slot)
            return
        spares = self._spares
        if kind not in spares:
            if len(spares) >= 2:
                spares.clear()
            spares[kind] = []
        if len(spares[kind]) < SPARES:
            spares[kind].append(slot)

    def trim(self) -> None:
        """Let go of all places that are not in use."""
        self._made.clear()
        self._free.clear()
        self._sizes.clear()
        self._spares.clear()
