# SPDX-License-Identifier: BSD-3-Clause
"""The checks of ``vof doctor``: each looks at a machine and tells what it found.

A finding's level is one of ``LEVELS``. Only what keeps vof from working at all is a failure; what
one can do without is a note.
"""

import ipaddress
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vof.cli.machine import UNLIMITED, Machine

LEVELS = ("ok", "note", "warn", "fail")
"""From good to bad: as it should be; good to know; works, but badly; does not work."""

PYTHON = (3, 11)
PACKAGES = {"trio": (0, 25), "msgpack": (1, 0)}
CONNECTIONS = 4096
"""Default of limits.connections of a target."""
BACKLOG = 1024
"""Connections that wait for a target to accept them."""
SPARE_FILES = 64
LOCKED = 64 << 20
CAP_IPC_LOCK = 14
"""Number of the capability that no limit of locked memory counts for."""
WINDOW = 4 << 20
IWARP = "4"
"""How the type of a node of iWARP begins."""
QUICK_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
IN_MEMORY = ("tmpfs", "ramfs")

DISTRIBUTION = (
    "usr/lib/python3/dist-packages/pyverbs",
    "usr/lib64/python{}.{}/site-packages/pyverbs",
)
"""Where distributions have pyverbs; a virtual environment need not see it."""
LIBRARIES = ("usr/lib", "usr/lib64", "usr/local/lib")

MODULES = {
    "tun": ("dev/net/tun", "a network device on a tap"),
    "vduse": ("dev/vduse/control", "a device for the kernel of this machine"),
    "vhost_vdpa": ("", "a vDPA device of this machine"),
    "rdma_ucm": ("dev/infiniband/rdma_cm", "RDMA connections"),
    "ib_uverbs": ("", "RDMA"),
    "siw": ("", "RDMA over TCP without RDMA hardware"),
    "rdma_rxe": ("", "RDMA over Ethernet without RDMA hardware"),
}
"""Kernel modules: the node that shows that one is there, and what wants it."""

HELPERS = {
    "qemu-storage-daemon": ("qemu-system-common", "disk images as vhost-user devices"),
    "virtiofsd": ("virtiofsd (Debian 12: qemu-system-common)", "directories as vhost-user devices"),
}
"""Programs of others: their Debian packages, and what for."""


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        id: stable name.
        level: of ``LEVELS``.
        seen: what was found.
        todo: what to do about it, "" for nothing.
    """

    id: str
    level: str
    seen: str
    todo: str = ""


def _python(machine: Machine) -> Iterator[Finding]:
    version = ".".join(map(str, machine.python))
    if machine.python >= PYTHON:
        yield Finding("python", "ok", version)
    else:
        yield Finding("python", "fail", version, "install Python 3.11 or later")


def _numbers(version: str) -> tuple[int, ...]:
    """Return how a version begins."""
    words = version.split(".")[:2]
    return tuple(int(word) for word in words if word.isdecimal())


def _packages(machine: Machine) -> Iterator[Finding]:
    for name, least in PACKAGES.items():
        version = machine.package(name)
        wanted = f"{name}>={'.'.join(map(str, least))}"
        if version is None:
            yield Finding(name, "fail", "not installed", f"pip install '{wanted}'")
        elif _numbers(version) < least:
            yield Finding(name, "fail", f"{version} is too old", f"pip install '{wanted}'")
        else:
            yield Finding(name, "ok", version)
    yield _pyverbs(machine)


def _pyverbs(machine: Machine) -> Finding:
    if (version := machine.package("pyverbs")) is not None:
        return Finding("pyverbs", "ok", version or "installed")
    fits = "cpython-{}{}-".format(*machine.python)
    for place in DISTRIBUTION:
        files = machine.names(place.format(*machine.python))
        if any(fits in name for name in files):
            return Finding("pyverbs", "ok", "the distribution's")
        if files:
            todo = "only for RDMA: make the virtual environment with /usr/bin/python3"
            return Finding("pyverbs", "note", "the distribution's is for another Python", todo)
    return Finding("pyverbs", "note", "not installed", "only for RDMA: apt install python3-pyverbs")


def _limits(machine: Machine) -> Iterator[Finding]:
    files = machine.limits["nofile"]
    if 0 <= files < CONNECTIONS + SPARE_FILES:
        seen = f"{files} open files, less than the {CONNECTIONS} connections that a target allows"
        todo = "ulimit -n 65536 (the service does), or lower limits.connections"
        yield Finding("nofile", "warn", seen, todo)
    else:
        yield Finding("nofile", "ok", "unlimited" if files == UNLIMITED else f"{files} open files")
    locked = machine.limits["memlock"]
    if _locks_all(machine):
        yield Finding("memlock", "ok", "this user may lock as much as there is")
    elif locked == UNLIMITED or locked >= LOCKED:
        seen = "unlimited" if locked == UNLIMITED else f"{locked} bytes"
        yield Finding("memlock", "ok", seen)
    else:
        level = "warn" if machine.names("sys/class/infiniband") else "note"
        todo = "only for RDMA, whose buffers are locked: ulimit -l unlimited, or LimitMEMLOCK="
        yield Finding("memlock", level, f"{locked} bytes may be locked", todo)


def _locks_all(machine: Machine) -> bool:
    """Return whether the limit of locked memory is none for this process."""
    for line in machine.read("proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> CAP_IPC_LOCK & 1)
    return False


def _polling(machine: Machine) -> Iterator[Finding]:
    one = machine.cpus == 1
    seen = f"{machine.cpus} CPU" + "s" * (not one)
    virtual = " hypervisor" in machine.read("proc/cpuinfo")
    if one:
        todo = "spins cannot pay where both ends share the CPU: VOF_POLL_US=0 there"
        yield Finding("cpus", "note", seen, todo)
    else:
        yield Finding("cpus", "ok", seen)
    if virtual:
        todo = (
            "a wake-up across CPUs is slow here: let vof spin before it sleeps, unless CPU is dear"
        )
        yield Finding("virtual", "note", "a virtual machine", todo)
    else:
        yield Finding("virtual", "ok", "no hypervisor seen")
    text = machine.environ.get("VOF_POLL_US")
    if text is None:
        yield Finding("poll_us", "ok", "VOF_POLL_US is not set: up to 100 microseconds")
    elif not text.isdecimal():
        todo = "set microseconds, such as 100, or unset it"
        yield Finding("poll_us", "fail", f"VOF_POLL_US={text!r} is no number", todo)
    elif int(text) == 0:
        todo = "unset VOF_POLL_US for shorter latency"
        yield Finding("poll_us", "note", "polling is off", todo)
    else:
        yield Finding("poll_us", "ok", f"VOF_POLL_US: up to {int(text)} microseconds")


def _clock(machine: Machine) -> Iterator[Finding]:
    name = machine.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if name in QUICK_CLOCKS:
        yield Finding("clock", "ok", name)
    elif not name:
        yield Finding("clock", "note", "the clock source is not shown here")
    else:
        todo = "reading it is slow, and each request reads it; see available_clocksource beside it"
        yield Finding("clock", "warn", name, todo)


def _tcp(machine: Machine) -> Iterator[Finding]:
    text = machine.read("proc/sys/net/core/somaxconn")
    if text.isdecimal() and int(text) < BACKLOG:
        todo = f"sysctl net.core.somaxconn={BACKLOG}, for many initiators that connect at once"
        yield Finding("somaxconn", "warn", text, todo)
    else:
        yield Finding("somaxconn", "ok" if text else "note", text or "not shown here")
    for name in ("tcp_rmem", "tcp_wmem"):
        text = machine.read(f"proc/sys/net/ipv4/{name}")
        most = text.split()[-1:]
        if not most:
            yield Finding(name, "note", "not shown here")
        elif int(most[0]) < WINDOW:
            low, middle, _ = text.split()
            todo = f"on fast or far networks: sysctl net.ipv4.{name}='{low} {middle} {4 * WINDOW}'"
            yield Finding(name, "note", f"at most {most[0]} bytes", todo)
        else:
            yield Finding(name, "ok", f"at most {most[0]} bytes")


def _rdma(machine: Machine) -> Iterator[Finding]:
    names = machine.names("sys/class/infiniband")
    if names:
        yield Finding("rdma", "ok", ", ".join(names))
    else:
        todo = "only for RDMA; without such hardware: rdma link add rxe0 type rxe netdev NAME"
        yield Finding("rdma", "note", "no RDMA device", todo)
    addresses = [found for name in names if (found := _addresses(machine, name))]
    if addresses:
        yield Finding("rdma.address", "ok", ", ".join(map(" ".join, addresses)))
    else:
        todo = (
            "only for RDMA: give the interface of a device an address: ip address add; "
            "that of an iWARP device is not shown here"
        )
        yield Finding("rdma.address", "note", "no RDMA device shows an IP address", todo)
    if any(library.startswith("librdmacm.so.1") for library in _libraries(machine)):
        yield Finding("librdmacm", "ok", "installed")
    else:
        yield Finding("librdmacm", "note", "not installed", "only for RDMA: apt install rdma-core")


def rdma_addresses(machine: Machine) -> list[str]:
    """Return the IP addresses of all RDMA devices, IPv4 first."""
    names = machine.names("sys/class/infiniband")
    found = [address for name in names for address in _addresses(machine, name)]
    return sorted(found, key=lambda address: ":" in address)


def _addresses(machine: Machine, device: str) -> list[str]:
    """Return the IP addresses of a device, as its table of global identifiers has them.

    That of an iWARP device has none: what is there is an address of hardware.
    """
    if machine.read(f"sys/class/infiniband/{device}/node_type").startswith(IWARP):
        return []
    top = f"sys/class/infiniband/{device}/ports"
    found: dict[str, None] = {}
    for port in machine.names(top):
        for entry in machine.names(f"{top}/{port}/gids"):
            text = machine.read(f"{top}/{port}/gids/{entry}")
            try:
                address = ipaddress.IPv6Address(text)
            except ValueError:
                continue
            if int(address) and not address.is_link_local:
                found[str(address.ipv4_mapped or address)] = None
    return list(found)


def _libraries(machine: Machine) -> Iterator[str]:
    for place in LIBRARIES:
        for name in machine.names(place):
            yield name
            if name.endswith("-linux-gnu"):
                yield from machine.names(f"{place}/{name}")


def _modules(machine: Machine) -> Iterator[Finding]:
    top = f"lib/modules/{machine.release}"
    listed = {
        line.partition(":")[0].rpartition("/")[2].partition(".")[0].replace("-", "_")
        for file in ("modules.dep", "modules.builtin")
        for line in machine.read(f"{top}/{file}").splitlines()
    }
    for name, (node, purpose) in MODULES.items():
        if machine.exists(f"sys/module/{name}") or (node and machine.exists(node)):
            yield Finding(f"module.{name}", "ok", "there")
        elif name in listed:
            yield Finding(f"module.{name}", "note", "not loaded", f"for {purpose}: modprobe {name}")
        else:
            seen = "this kernel has none" if listed else "not loaded, and no list of modules here"
            todo = f"only for {purpose}: a kernel that has it"
            yield Finding(f"module.{name}", "note", seen, todo)


def _helpers(machine: Machine) -> Iterator[Finding]:
    for name, (debian, purpose) in HELPERS.items():
        if path := machine.program(name):
            yield Finding(f"helper.{name}", "ok", path)
        else:
            todo = f"only for {purpose}: apt install {debian}"
            yield Finding(f"helper.{name}", "note", "not installed", todo)


def _io_uring(machine: Machine) -> Iterator[Finding]:
    text = machine.read("proc/sys/kernel/io_uring_disabled")
    if text == "0":
        yield Finding("io_uring", "ok", "allowed")
    else:
        seen = {"1": "for privileged processes only", "2": "switched off"}.get(
            text, "not shown here"
        )
        todo = "vof does not use it; helpers may: sysctl kernel.io_uring_disabled=0" * bool(text)
        yield Finding("io_uring", "note", seen, todo)


def _service(machine: Machine) -> Iterator[Finding]:
    if machine.exists("run/systemd/system"):
        yield Finding("systemd", "ok", "runs")
    else:
        todo = (
            "start vof target by what starts services here; sd_notify and LISTEN_FDS are understood"
        )
        yield Finding("systemd", "note", "does not run here", todo)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _limits,
    _polling,
    _clock,
    _tcp,
    _io_uring,
    _rdma,
    _modules,
    _helpers,
    _service,
)
"""In the order in which they are shown."""


def check_path(machine: Machine, path: str) -> Iterator[Finding]:
    """Tell what a directory is good for as a place of disk images."""
    kind = machine.file_system(path) or "unknown file system"
    if kind in IN_MEMORY:
        todo = "gone after a restart; --mem does the same without files"
        yield Finding("path", "note", f"{path}: {kind}, in memory", todo)
        return
    try:
        can = machine.nowait(path)
    except OSError as error:
        todo = "name a directory in which you may write"
        yield Finding("path", "fail", f"{path}: {error.strerror or error}", todo)
        return
    cannot = [name for name, possible in can.items() if not possible]
    if cannot:
        seen = f"{path}: {kind}, no {' and no '.join(cannot)} that does not block (RWF_NOWAIT)"
        todo = "such requests go to threads, which takes longer; xfs and btrfs can do both"
        yield Finding("path", "note", seen, todo)
    else:
        yield Finding("path", "ok", f"{path}: {kind}, reads and writes without blocking")


def findings(machine: Machine, path: str = "") -> list[Finding]:
    """Return what all checks found."""
    found = [finding for check in CHECKS for finding in check(machine)]
    return found + (list(check_path(machine, path)) if path else [])


def worst(found: list[Finding]) -> str:
    """Return the worst level."""
    return max((finding.level for finding in found), key=LEVELS.index)
