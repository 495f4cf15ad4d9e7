# SPDX-License-Identifier: BSD-3-Clause
"""A configuration in files: one, and its drop-ins, which are those of the directory beside it.

``vof.toml`` is read first, then ``vof.toml.d/*.toml`` in the order of their names. A later file
replaces ``listen`` and ``admin``, and single keys of ``[limits]``; its devices are added. Each file
is checked by itself first, so that an error names the file that it is in.
"""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from vof.errors import ConfigError
from vof.target.config import Config, Device, read_device, read_listen, whole
from vof.target.keys import unknown
from vof.target.vocabulary import ADMIN, DEFAULT_LISTEN, LIMITS
from vof.transport import Url

TOP = ("listen", "admin", "limits", "device")
"""What a file may have."""


class Part(NamedTuple):
    """What one file says.

    Attributes:
        listen: where, or None for no word about it.
        admin: path of the admin socket, or None.
        limits: those that it gives.
        devices: in order.
    """

    listen: tuple[Url, ...] | None
    admin: str | None
    limits: dict[str, Any]
    devices: tuple[Device, ...]


def load(path: str) -> Config:
    """Read a file, which may be missing where it has drop-ins, and these. Raises ConfigError."""
    files = _files(path)
    listen: tuple[Url, ...] = ()
    admin = ""
    limits = {name: key.default for name, key in LIMITS.items()}
    where: dict[str, str] = {}
    devices: tuple[Device, ...] = ()
    for name in files:
        part = _read(name)
        listen = listen if part.listen is None else part.listen
        admin = admin if part.admin is None else part.admin
        limits |= part.limits
        where |= dict.fromkeys(part.limits, name)
        devices += part.devices
    return whole(path, listen, devices, limits, where)._replace(admin=admin)


def _files(path: str) -> list[str]:
    """Return what is to be read, in order."""
    directory = Path(f"{path}.d")
    try:
        names = sorted(one.name for one in directory.iterdir())
    except FileNotFoundError:
        return [path]
    except OSError as error:
        raise ConfigError(str(directory), "", str(error)) from None
    more = [str(directory / one) for one in names if one.endswith(".toml") and one[0] != "."]
    return more if more and not Path(path).exists() else [path, *more]


def _read(path: str) -> Part:
    """Read one file."""
    try:
        data = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(path, "", str(error)) from None
    for name in data:
        if name not in TOP:
            raise unknown(path, "", name, TOP)
    listen = data.get("listen", [])
    if not isinstance(listen, list) or not all(isinstance(text, str) for text in listen):
        raise ConfigError(path, "listen", f'expected a list of URLs, such as ["{DEFAULT_LISTEN}"]')
    limits = data.get("limits", {})
    if not isinstance(limits, dict):
        raise ConfigError(path, "limits", "expected a table: [limits]")
    for name in limits:
        if name not in LIMITS:
            raise unknown(path, "limits.", name, LIMITS)
    tables = data.get("device", [])
    if not isinstance(tables, list) or not all(isinstance(row, dict) for row in tables):
        raise ConfigError(path, "device", "expected tables: [[device]]")
    devices = []
    for number, row in enumerate(tables):
        devices.append(read_device(path, f"device[{number}].", row))
    return Part(
        read_listen(path, listen) if "listen" in data else None,
        ADMIN.read(path, "admin", data["admin"]) if "admin" in data else None,
        {name: LIMITS[name].read(path, f"limits.{name}", value) for name, value in limits.items()},
        tuple(devices),
    )
