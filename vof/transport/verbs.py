# SPDX-License-Identifier: BSD-3-Clause
"""pyverbs, of whatever version, and what of it lasts: devices, protection domains, registrations.

This is the only place that imports pyverbs, and where its versions differ. It is not on PyPI in a
form that fits a distribution's libraries, so it is the distribution's package; where a virtual
environment does not see it, it is found where the distribution has it, and nothing else from there.
Constants stand here by their names in the verbs interface, whose numbers do not change, as pyverbs
renames its modules of them.
"""

import errno
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import resource
import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

from vof.errors import ConnectionLost, OutOfMemory, VofError
from vof.memory import Region, UserRegion
from vof.protocol.registered import REMOTE_READ, REMOTE_WRITE, Domain, Keys, own_region
from vof.transport.rdmacm import TRANSPORT_IWARP, NoRdma

Verbs: TypeAlias = Any
"""An object of pyverbs, which has no types."""

ACCESS_LOCAL_WRITE, ACCESS_REMOTE_WRITE, ACCESS_REMOTE_READ = 1, 2, 4
READS = 16
"""Reads under way at a time that we ask for."""
LEAST = 64
"""Bytes of the smallest place for a message."""
PLACES_BYTES = 16 * 1024
"""So much is registered for places at a time, at least: to register costs more than memory does."""

PLACES = (
    f"{sys.base_prefix}/lib/python3/dist-packages",
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages",
)
"""Where distributions have packages for all their Python programs."""


# -- pyverbs --------------------------------------------------------------------------------------


def find_pyverbs() -> str:
    """Return the folder of pyverbs, "" for none."""
    spec = importlib.util.find_spec("pyverbs") or importlib.machinery.PathFinder.find_spec(
        "pyverbs", PLACES
    )
    return str(Path(spec.origin).parent) if spec and spec.origin else ""


class _Loggers:
    """``logging`` for pyverbs, which looks a logger up for each object that it makes.

    For each completion, that took as long as all the rest.
    """

    getLogger = staticmethod(cache(logging.getLogger))

    def __getattr__(self, name: str) -> object:
        return getattr(logging, name)


_loggers = _Loggers()


@cache
def pyverbs(name: str) -> ModuleType:
    """Import a module of pyverbs. Raises NoRdma."""
    folder = find_pyverbs()
    if not folder:
        raise NoRdma("pyverbs is missing: apt install python3-pyverbs (not pip)")
    if "pyverbs" not in sys.modules:
        spec = importlib.util.spec_from_file_location("pyverbs", f"{folder}/__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["pyverbs"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["pyverbs"])
    try:
        module = importlib.import_module(f"pyverbs.{name}")
    except ImportError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise NoRdma(
            f"pyverbs in {folder} does not fit this Python {version} ({error}): "
            "make the virtual environment with the distribution's /usr/bin/python3"
        ) from None
    if base := sys.modules.get("pyverbs.base"):
        base.logging = _loggers  # type: ignore[attr-defined]
    return module


def load() -> None:
    """Import what is needed of pyverbs, which takes a while the first time. Raises NoRdma."""
    for name in ("device", "pd", "mr", "cq", "qp", "wr", "addr"):
        pyverbs(name)


_opening = threading.Lock()


def completion_channel(device: "Device") -> tuple[Verbs, int]:
    """Make a completion channel; return it and its descriptor, which does not block.

    pyverbs before 57 does not show that: then it is the one that was not there before.
    """
    with _opening:
        before = _event_files()
        channel = pyverbs("cq").CompChannel(device.context)
        fd = getattr(channel, "fd", None)
        if fd is None:
            [fd] = _event_files() - before
    os.set_blocking(fd, False)
    return channel, fd


def _event_files() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
        except FileNotFoundError:
            pass  # that of the list itself
    return found


# -- devices and memory ---------------------------------------------------------------------------


class Device:
    """An RDMA device, as long as somebody uses it. Got by ``Device.open``.

    Attributes:
        name: as the system has it.
        iwarp: it speaks iWARP, where some things differ.
        context: of pyverbs.
        answers: reads of a peer that it answers at a time.
        reads: that it may have under way at a time.
        requests: posts, and receives, of a queue pair.
    """

    _open: ClassVar[dict[str, "Device"]] = {}

    def __init__(self, name: str, transport: int) -> None:
        try:
            self.context: Verbs = pyverbs("device").Context(name=name)
            limits = self.context.query_device()
        except pyverbs("pyverbs_error").PyverbsError as error:
            raise NoRdma(f"the RDMA device {name} cannot be used: {error}") from None
        self.name = name
        self.iwarp = transport == TRANSPORT_IWARP
        self.answers = min(limits.max_qp_rd_atom, READS)
        self.reads = min(limits.max_qp_init_rd_atom, READS)
        self.requests = limits.max_qp_wr
        self._users = 0

    @classmethod
    def open(cls, name: str, transport: int) -> "Device":
        """Return a device, which all users share, in whatever thread. Raises NoRdma."""
        with _opening:
            device = cls._open.get(name) or cls(name, transport)
            cls._open[name] = device
            device._users += 1
        return device

    def close(self) -> None:
        """Let go of it, once for each ``open``."""
        with _opening:
            self._users -= 1
            if not self._users:
                del self._open[self.name]
                self.context.close()


class VerbsDomain(Domain):
    """A protection domain, as long as queue pairs use it. See ``Domain``.

    Attributes:
        device: it belongs to this one.
        pd: of pyverbs.
    """

    def __init__(self, device: Device) -> None:
        """Make one for a first queue pair; one use of the device is given away.

        Raises:
            VofError: the device has no more of them.
        """
        self.device = device
        try:
            self.pd: Verbs = pyverbs("pd").PD(device.context)
        except pyverbs("pyverbs_error").PyverbsError as error:
            device.close()
            raise VofError(f"{device.name} gives no protection domain: {error}") from None
        self._registered: dict[Keys, tuple[Verbs, Region | UserRegion]] = {}
        self._users = 1

    def register(self, region: Region | UserRegion, rights: int) -> Keys:
        """Register a region. See ``Domain``."""
        access = ACCESS_LOCAL_WRITE
        if rights & REMOTE_WRITE or (self.device.iwarp and not rights):
            access |= ACCESS_REMOTE_WRITE  # iWARP answers a read by a write
        if rights & REMOTE_READ:
            access |= ACCESS_REMOTE_READ
        return self.enter(region, access)

    def enter(self, region: Region | UserRegion, access: int) -> Keys:
        """Register a region for some access, as verbs have it. Raises as ``register`` does."""
        if not self._users:
            raise ConnectionLost(f"nothing is connected by {self.device.name} any more")
        try:
            made = pyverbs("mr").MR(self.pd, region.size, access, address=region.address)
        except pyverbs("pyverbs_error").PyverbsError as error:
            what = f"{region.size} bytes cannot be registered for RDMA: {error}; "
            if getattr(error, "error_code", 0) == errno.EFAULT:
                what += "mapped files of tmpfs or hugetlbfs can, those of most others cannot"
                raise VofError(what) from None
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            what += f"{limit} bytes may be locked in memory (ulimit -l, or LimitMEMLOCK=)"
            raise OutOfMemory(what) from None
        keys = Keys(made.lkey, made.rkey)
        self._registered[keys] = made, region
        return keys

    def deregister(self, keys: Keys) -> None:
        """Take a registration back. See ``Domain``."""
        made, _ = self._registered.pop(keys, (None, None))
        if made is not None:
            made.close()

    def share(self) -> "VerbsDomain":
        """Return it for one more queue pair."""
        self._users += 1
        return self

    def close(self) -> None:
        """Let go of it, once for each queue pair; with the last, all registrations end."""
        self._users -= 1
        if not self._users:
            while self._registered:
                self.deregister(next(iter(self._registered)))
            self.pd.close()
            self.device.close()


class Place:
    """Where a message is sent from, or received.

    Attributes:
        view: its bytes.
        address: of the first.
        key: local key.
        free: where it goes back, when nobody needs its message any more.
    """

    __slots__ = ("_receive", "address", "free", "key", "view")

    def __init__(self, view: memoryview, address: int, key: int, free: "list[Place]") -> None:
        self.view = view
        self.address = address
        self.key = key
        self.free = free
        self._receive: Verbs = None

    @property
    def receive(self) -> Verbs:
        """The work request that receives into it."""
        if self._receive is None:
            work = pyverbs("wr")
            entry = work.SGE(self.address, len(self.view), self.key)
            self._receive = work.RecvWR(num_sge=1, sg=[entry])
            entry.close()  # the request has a copy
        return self._receive


class Places:
    """Places for messages of one queue pair, which no peer can touch, used again and again."""

    def __init__(self, domain: VerbsDomain) -> None:
        self._domain = domain
        self._free: dict[int, list[Place]] = {}
        self._keys: list[Keys] = []
        self._rest = memoryview(b"")  # what is registered and no place yet,
        self._address = self._key = 0  # where that begins, and its key

    def free(self, size: int, wanted: int) -> list[Place]:
        """Return places for messages of some size, one at least; take them from its end.

        Args:
            size: bytes.
            wanted: how many of them will be taken, one after the other.

        Raises:
            VofError: see ``Domain.register``.
        """
        free = self._free.get(size)
        if free is None:
            whole = max(LEAST, 1 << (size - 1).bit_length())
            free = self._free[size] = self._free.setdefault(whole, [])
        if not free:
            self._cut(max(LEAST, 1 << (size - 1).bit_length()), wanted, free)
        return free

    def _cut(self, size: int, count: int, free: list[Place]) -> None:
        need = count * size
        if need > len(self._rest):
            region = own_region(max(need, PLACES_BYTES))
            keys = self._domain.enter(region, ACCESS_LOCAL_WRITE)
            self._keys.append(keys)
            self._rest, self._address, self._key = region.view, region.address, keys.local
        rest, first = self._rest, self._address
        self._rest, self._address = rest[need:], first + need
        for at in range(0, need, size):
            free.append(Place(rest[at : at + size], first + at, self._key, free))

    def close(self) -> None:
        """Let go of the memory."""
        for free in self._free.values():
            free.clear()
        for keys in self._keys:
            self._domain.deregister(keys)
