# SPDX-License-Identifier: BSD-3-Clause
"""The first file system of a virtual machine: an archive of the form that Linux unpacks (newc)."""

import stat
from collections.abc import Iterable
from pathlib import Path

from tests.lab.errors import LabError

BUSYBOX = Path("/bin/busybox")
FOLDERS = ("bin", "dev", "guest", "host", "modules", "new", "proc", "sys", "upper")
INTERPRETER = 3
"""PT_INTERP, the segment that names a dynamic loader."""


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return an archive of files that root may execute, the usual folders, and busybox."""
    parts = [_entry(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    parts += [_entry(name, stat.S_IFREG | 0o755, data) for name, data in files]
    parts += [_entry("bin/busybox", stat.S_IFREG | 0o755, busybox())]
    return b"".join(parts) + _entry("TRAILER!!!", 0)


def busybox() -> bytes:
    """Return the program. Raises LabError where it needs libraries, which are not there yet."""
    data = BUSYBOX.read_bytes() if BUSYBOX.exists() else b""
    at = int.from_bytes(data[32:40], "little")
    kinds = data[at : at + 56 * int.from_bytes(data[56:58], "little") : 56]
    if not data or INTERPRETER in kinds:
        raise LabError(f"{BUSYBOX} is not there, or not static (Debian package busybox-static)")
    return data
