# SPDX-License-Identifier: BSD-3-Clause
"""What a target serves, as data: the TOML file and the command line, read by one table.

``LIMITS`` and ``DEVICES`` are the whole vocabulary. They parse, check, give defaults, explain
themselves (``vof target --help-config``), and name what is wrong by file and dotted key.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vof.errors import ConfigError
from vof.target.access import THIS_MACHINE, Allow
from vof.target.keys import REQUIRED, Key, read_table, rows, unknown
from vof.target.limits import Limits
from vof.transport import Url, parse_url
from vof.virtio.net import DEFAULT_MTU, LEAST_MTU, MOST_MTU

DEFAULT_LISTEN = "vof+tcp://127.0.0.1:8549"


_NUMBERS = {field.name: field.default for field in dataclasses.fields(Limits)}

LIMITS: dict[str, Key] = {
    "request_bytes": Key(
        "size",
        _NUMBERS["request_bytes"],
        "readable, and writable, bytes of one request",
        512,
        1 << 30,
    ),
    "queue_bytes": Key(
        "size",
        _NUMBERS["queue_bytes"],
        "bytes in flight on one queue; then it stops reading",
        4096,
        1 << 40,
    ),
    "association_bytes": Key(
        "size",
        _NUMBERS["association_bytes"],
        "bytes of all queues of one association, beyond 256K of each; then they wait",
        4096,
        1 << 40,
    ),
    "peer_bytes": Key(
        "size", _NUMBERS["peer_bytes"], "the same, of all from one address", 4096, 1 << 40
    ),
    "total_bytes": Key("size", _NUMBERS["total_bytes"], "the same, of all", 4096, 1 << 40),
    **{
        name: Key("integer", _NUMBERS[name], text, 1, most)
        for name, text, most in (
            ("associations", "device instances at a time", 65535),
            ("peer_associations", "device instances of one address or unix user", 65535),
            ("queues", "virtqueues at a time", 1 << 20),
            ("peer_queues", "virtqueues of one address or unix user", 1 << 20),
            ("connections", "connections at a time", 1 << 20),
            ("peer_connections", "connections of one address or unix user", 1 << 20),
        )
    },
    "connect_seconds": Key(
        "seconds", _NUMBERS["connect_seconds"], "for a connection to say who it is", 0.01, 3600
    ),
    "command_seconds": Key(
        "seconds",
        _NUMBERS["command_seconds"],
        "for a peer to finish a message that it began",
        0.01,
        3600,
    ),
    "drain_seconds": Key(
        "seconds",
        _NUMBERS["drain_seconds"],
        "for requests in flight when the target stops",
        0,
        3600,
    ),
    "keepalive_seconds": Key(
        "seconds",
        _NUMBERS["keepalive_seconds"],
        "between signs of life on an idle control queue; 0: none",
        0,
        86400,
    ),
    "poll_us": Key(
        "integer", 100, "longest spin before a sleep, in microseconds; 0: none", 0, 10000
    ),
}

RISING = (
    ("request_bytes", "queue_bytes"),
    ("association_bytes", "peer_bytes"),
    ("peer_bytes", "total_bytes"),
)
"""Pairs of limits of which the second is not the smaller one."""

ADMIN = Key("path", "", "where vof status and others reach the target, or none")

_COMMON = {
    "queue_size": Key("integer", 128, "largest size of each queue", 1, 32768),
}
_DISK = {
    "tvqn": Key("name", "", "name of the device"),
    "queues": Key("integer", 1, "number of queues", 1, 256),
    **_COMMON,
    "serial": Key("serial", "", "what get-id answers"),
    "block_size": Key("block", 512, "block size that the device reports", 512, 65536),
    "request_max": Key(
        "size", 1 << 20, "largest segment that a driver should use (size_max)", 4096, 1 << 30
    ),
}

DEVICES: dict[str, dict[str, Key]] = {
    "blk": {
        "path": Key("path", REQUIRED, "file or block device"),
        "read_only": Key("switch", False, "refuse to write"),
        **_DISK,
    },
    "mem": {"size": Key("size", REQUIRED, "bytes of the disk, in memory", 512, 1 << 44), **_DISK},
    "rng": {
        "tvqn": Key("name", "", "name of the device"),
        **_COMMON,
    },
    "net": {
        "tap": Key("text", "", "plugged into this tap; created where that is permitted"),
        "socket": Key("path", "", "plugged into a unix datagram socket that is bound here"),
        "peer": Key("path", "", "where frames are sent; belongs to socket"),
        "echo": Key("switch", False, "each frame comes back"),
        "tvqn": Key("name", "", "name of the device"),
        "mac": Key("mac", "", "address of the device; by default made from its name"),
        "mtu": Key("integer", DEFAULT_MTU, "largest packet in a frame", LEAST_MTU, MOST_MTU),
        "queue_size": Key("integer", 256, "largest size of each queue for frames", 1, 32768),
    },
    "console": {
        "pty": Key("port", "", "its bytes come and go by a pty; this becomes a link to it"),
        "socket": Key("port", "", "its bytes come and go by a unix socket that listens here"),
        "tvqn": Key("name", "", "name of the device"),
        "cols": Key("integer", 0, "columns that the device reports; 0: none", 0, 65535),
        "rows": Key("integer", 0, "rows that the device reports; 0: none", 0, 65535),
        **_COMMON,
    },
    "model": {
        "class": Key("class", REQUIRED, "a DeviceModel of your own"),
        "tvqn": Key("name", "", "name of the device"),
        "python_path": Key("path", "", "directory to find the module in, after what is installed"),
        "options": Key("table", {}, "keyword arguments of the class"),
    },
}
"""The keys of each type of device; "blk" and "mem" are both block devices."""

ALLOW: dict[str, Key] = {
    "ivqn": Key("pattern", "*", "name of the initiator"),
    "from": Key("origin", REQUIRED, "where it comes from"),
    "read_only": Key("switch", False, "it may not write"),
}
"""The keys of each entry of ``allow``, which every device has."""

EXAMPLE_ALLOW = '[{ ivqn = "*", from = "local", read_only = false }]'
"""As it is without a word about it."""

READ_ONLY = ("blk", "mem")
"""Types of devices that can be read-only to some initiators."""

CHOICES = {
    "net": (("tap",), ("socket", "peer"), ("echo",)),
    "console": (("pty",), ("socket",)),
}
"""Groups of keys, of which a device has exactly one; the last is shown in the documentation."""

FREE = "options"
"""The key that takes, on the command line, what is no other key of its device."""

SHORT = {"ro": "read_only"}
"""Switches of the command line."""


class Device(NamedTuple):
    """A device to serve.

    Attributes:
        type: of ``DEVICES``.
        tvqn: its name; of one that was only read, "" where none is given.
        values: of its other keys.
        where: the file and key, or the option, that it comes from.
        allow: who may use it; the first entry that matches decides.
    """

    type: str
    tvqn: str
    values: Mapping[str, Any]
    where: tuple[str, str]
    allow: tuple[Allow, ...] = THIS_MACHINE


class Config(NamedTuple):
    """All that a target needs to know.

    Attributes:
        listen: where.
        devices: to serve, each with its own tvqn.
        limits: for the server.
        poll_us: the longest spin.
        admin: path of the admin socket, "none", or "" for where it usually is.
    """

    listen: tuple[Url, ...]
    devices: tuple[Device, ...]
    limits: Limits
    poll_us: int
    admin: str = ""


def device(path: str, prefix: str, kind: str, given: Mapping[str, object]) -> Device:
    """Read one device. Raises ConfigError."""
    if kind not in DEVICES:
        raise ConfigError(path, prefix + "type", f"expected {' or '.join(DEVICES)}, not {kind!r}")
    own = dict(given)
    allow = THIS_MACHINE
    if "allow" in own:
        allow = _allow(path, f"{prefix}allow", kind, own.pop("allow"))
    keys = DEVICES[kind]
    for name in own:
        if name not in keys:
            raise unknown(path, prefix, name, (*keys, "allow"))
    values = read_table(path, prefix, keys, own)
    if groups := CHOICES.get(kind):
        given_groups = [group for group in groups if any(values[name] for name in group)]
        if len(given_groups) != 1 or not all(values[name] for name in given_groups[0]):
            words = ", or ".join(" with ".join(group) for group in groups)
            raise ConfigError(path, prefix.rstrip("."), f"expected exactly one of: {words}")
    tvqn = values.pop("tvqn")
    return Device(kind, tvqn, values, (path, prefix.rstrip(".")), allow)


def allowed(devices: tuple[Device, ...], options: Sequence[str]) -> tuple[Device, ...]:
    """Return devices for those whom ``--allow`` names: "[IVQN@]FROM[,ro]". Raises ConfigError."""
    rows = []
    for text in options:
        who, comma, mode = text.partition(",")
        ivqn, at, origin = who.rpartition("@")
        if comma and mode != "ro":
            raise ConfigError(f"--allow {text}", "", f"expected ,ro or nothing, not ,{mode}")
        row = ({"ivqn": ivqn} if at else {}) | {"from": origin, "read_only": bool(comma)}
        rows.append((f"--allow {text}", row))
    return tuple(
        one._replace(allow=tuple(_entry(path, "", one.type, row) for path, row in rows))
        if rows
        else one
        for one in devices
    )


def _allow(path: str, name: str, kind: str, given: object) -> tuple[Allow, ...]:
    """Read who may use a device of a type."""
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise ConfigError(path, name, f"expected a list, such as {EXAMPLE_ALLOW}, not {given!r}")
    return tuple(_entry(path, f"{name}[{number}].", kind, row) for number, row in enumerate(given))


def _entry(path: str, prefix: str, kind: str, given: Mapping[str, object]) -> Allow:
    """Read one entry."""
    values = read_table(path, prefix, ALLOW, given)
    if values["read_only"] and kind not in READ_ONLY:
        text = f"a device of type {kind} is never read-only; {' and '.join(READ_ONLY)} can be"
        raise ConfigError(path, f"{prefix}read_only", text)
    return Allow(values["ivqn"], values["from"], values["read_only"])


def named(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Name each device that has no name yet. Raises ConfigError for a name given twice."""
    taken: dict[str, tuple[str, str]] = {}
    for one in devices:
        if one.tvqn in taken:
            text = f"tvqn {one.tvqn!r} is taken by {': '.join(taken[one.tvqn])}: give each its own"
            raise ConfigError(*one.where, text)
        if one.tvqn:
            taken[one.tvqn] = one.where
    named = []
    for one in devices:
        name = one.tvqn
        if not name:
            source = one.values.get("path") or one.values.get("class", "").rpartition(":")[2]
            stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).stem)[:128]
            name = base = f"{one.type}/{stem}" if stem else one.type
            number = 1
            while name in taken:
                number += 1
                name = f"{base}-{number}"
            taken[name] = one.where
        named.append(one._replace(tvqn=name))
    return tuple(named)


def option(name: str, text: str) -> Device:
    """Read a device from a command line option: the first value, then ``key=value`` by commas.

    The module of a model is also looked for in the current directory.

    Raises:
        ConfigError: it names the option and the key.
    """
    keys = DEVICES[name]
    first = next((key for key, row in keys.items() if row.default is REQUIRED), None)
    given: dict[str, object] = {"python_path": os.curdir} if "python_path" in keys else {}
    for number, part in enumerate(filter(None, text.split(","))):
        key, equals, value = part.partition("=")
        if equals:
            given[key] = value
        elif number == 0 and first:
            given[first] = part
        else:
            given[SHORT.get(part, part)] = True
    if FREE in keys:
        given[FREE] = {key: given.pop(key) for key in [*given] if key == FREE or key not in keys}
    return device(f"--{name}", "", name, given)


def read_listen(path: str, texts: Sequence[str]) -> tuple[Url, ...]:
    """Read where to listen. Raises ConfigError."""
    urls = []
    for number, text in enumerate(texts):
        where = f"listen[{number}]"
        try:
            url = parse_url(text)
        except ConfigError as error:
            raise ConfigError(path, where, str(error)) from None
        if url.tvqn:
            raise ConfigError(path, where, f"{text}: a listener serves all devices; no name")
        urls.append(url)
    return tuple(urls)


def build(
    path: str,
    listen: Sequence[str],
    devices: tuple[Device, ...],
    limits: Mapping[str, object],
) -> Config:
    """Put a configuration together and check what concerns all of it. Raises ConfigError."""
    values = read_table(path, "limits.", LIMITS, limits)
    return whole(path, read_listen(path, listen), devices, values, dict.fromkeys(values, path))


def whole(
    path: str,
    listen: tuple[Url, ...],
    devices: tuple[Device, ...],
    limits: Mapping[str, Any],
    where: Mapping[str, str],
) -> Config:
    """Check what concerns all of a configuration, whose parts were read. Raises ConfigError.

    Args:
        path: what it comes from.
        listen: where; the default where there is none.
        devices: at least one; those without a name get one.
        limits: all of them.
        where: the file of a limit, if it is another than ``path``.
    """
    if not devices:
        raise ConfigError(path, "device", "nothing to serve: name at least one device")
    values = dict(limits)
    poll_us = values.pop("poll_us")
    for small, large in RISING:
        if values[large] < values[small]:
            at, other = where.get(large) or where.get(small) or path, where.get(small, "default")
            least = f"limits.{small}: {values[small]}" + (f" ({other})" if other != at else "")
            raise ConfigError(at, f"limits.{large}", f"{values[large]} is less than {least}")
    listen = listen or read_listen(path, (DEFAULT_LISTEN,))
    return Config(listen, named(devices), Limits(**values), poll_us)


def describe() -> str:
    """Return the documentation of the file, which is itself a valid file."""
    lines = [
        "# All keys of a target's configuration file, with their defaults.",
        "# FILE.d/*.toml are read after FILE, by name: they replace single keys, and add devices.",
        "",
    ]
    lines += [f'listen = ["{DEFAULT_LISTEN}"]  # where to listen; loopback unless you say more', ""]

    lines += [
        "# Entries of allow. The first that matches an initiator decides; with none it is refused.",
        *(f"# {line}" for line in rows(ALLOW)),
        "",
    ]
    lines += [f'# admin = "/run/vof/target.sock"  # {ADMIN.help}; {ADMIN.expected}', ""]
    lines += ["[limits]", *rows(LIMITS)]
    for kind, keys in DEVICES.items():
        lines += ["", "[[device]]", f'type = "{kind}"', *rows(keys, CHOICES.get(kind, ((),))[-1])]
        lines.append(f"allow = {EXAMPLE_ALLOW}  # who may use it; a list")
    return "\n".join(lines)
