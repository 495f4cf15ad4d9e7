# SPDX-License-Identifier: BSD-3-Clause
"""What ``vof doctor`` looks at: this machine, or in a test one made of files and values.

Nothing here needs more than the standard library, so that it works where a package is missing.
"""

import errno
import importlib.metadata
import importlib.util
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

UNLIMITED = resource.RLIM_INFINITY
PLACES = ("usr/local/bin", "usr/bin", "usr/sbin", "bin", "usr/libexec", "usr/lib/qemu")
"""Where programs are that other programs start."""


def package(name: str) -> str | None:
    """Return the version of an installed package, "" for an unknown one, None for none."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return "" if importlib.util.find_spec(name) else None


def nowait(directory: str) -> dict[str, bool]:
    """Return whether reads and writes that do not block are possible in a directory.

    Makes a file without a name there, which is gone when this returns. Raises OSError.
    """
    can = {}
    with tempfile.TemporaryFile(dir=directory) as file:
        fd = file.fileno()
        os.pwrite(fd, bytes(4096), 0)
        for name, transfer in (("read", os.preadv), ("write", os.pwritev)):
            try:
                transfer(fd, [bytearray(512)], 0, os.RWF_NOWAIT)
                can[name] = True
            except OSError as error:
                can[name] = error.errno == errno.EAGAIN
    return can


@dataclass(frozen=True)
class Machine:
    """A machine; the defaults are this one.

    Attributes:
        root: above /proc, /sys, /dev and programs.
        environ: the environment.
        python: version of the interpreter.
        release: of the kernel.
        cpus: that this process may use.
        limits: soft limits of this process by name: "nofile" and "memlock".
        package: returns the version of a package, or None.
        nowait: see the function.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    python: tuple[int, int, int] = sys.version_info[:3]
    release: str = field(default_factory=lambda: os.uname().release)
    cpus: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    limits: Mapping[str, int] = field(
        default_factory=lambda: {
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        }
    )
    package: Callable[[str], str | None] = package
    nowait: Callable[[str], Mapping[str, bool]] = nowait

    def read(self, path: str) -> str:
        """Return what a file says, "" where it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Return whether something is there."""
        return (self.root / path).exists()

    def names(self, path: str) -> list[str]:
        """Return what a directory holds; nothing, where there is none."""
        try:
            return sorted(one.name for one in (self.root / path).iterdir())
        except OSError:
            return []

    def program(self, name: str) -> str:
        """Return where a program is, "" for nowhere."""
        return next((f"/{top}/{name}" for top in PLACES if self.exists(f"{top}/{name}")), "")

    def file_system(self, path: str) -> str:
        """Return the type of the file system that a path lies in, "" where that is unknown."""
        real, found = os.path.realpath(path), ("", "")
        for line in self.read("proc/self/mounts").splitlines():
            _, point, kind, *_ = line.split(" ")
            below = real == point or real.startswith(point.rstrip("/") + "/")
            if below and len(point) >= len(found[0]):
                found = point, kind
        return found[1]
