# SPDX-License-Identifier: BSD-3-Clause
"""What a target serves, as data: the TOML file and the command line, read by one table.

``KEYS`` below is the whole vocabulary. It parses, checks, gives defaults, explains itself
(``vof target --help-config``), and names what is wrong by file and dotted key.
"""

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vof.errors import ConfigError
from vof.protocol.v5 import VQN_BYTES
from vof.sizes import parse_size
from vof.target.server import Limits
from vof.transport import Url, parse_url
from vof.virtio.blk import SECTOR, VIRTIO_BLK_ID_BYTES
from vof.virtio.net import DEFAULT_MTU, LEAST_MTU, MOST_MTU, format_mac, parse_mac

DEFAULT_LISTEN = "vof+tcp://127.0.0.1:8549"
TOP = ("listen", "admin", "limits", "device")
"""What a file may have."""


def _class(value: object) -> str:
    text = _text(value)
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ValueError
    return text


def _table_of(value: object) -> dict[str, object]:
    if not isinstance(value, dict) or not all(map(str.isidentifier, value)):
        raise ValueError
    return dict(value)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    return int(value)


def _size(value: object) -> int:
    return parse_size("", value) if isinstance(value, str) else _integer(value)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return float(value)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}[
        str(value)
    ]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _name(value: object) -> str:
    text = _text(value)
    if len(text.encode()) >= VQN_BYTES:
        raise ValueError
    return text


def _serial(value: object) -> str:
    text = _text(value)
    if len(text.encode()) > VIRTIO_BLK_ID_BYTES:
        raise ValueError
    return text


def _mac(value: object) -> str:
    return format_mac(parse_mac(_text(value)))


def _block(value: object) -> int:
    size = _size(value)
    if size < SECTOR or size & (size - 1):
        raise ValueError
    return size


KINDS: dict[str, tuple[Callable[[object], Any], str]] = {
    "integer": (_integer, "an integer"),
    "size": (_size, 'a number of bytes, such as 4096 or "64M"'),
    "seconds": (_seconds, "a number of seconds"),
    "switch": (_switch, "true or false"),
    "text": (_text, "text"),
    "path": (_text, "the path of a file"),
    "class": (_class, "module:Class"),
    "table": (_table_of, "a table of names and values"),
    "serial": (_serial, f"text of 1 to {VIRTIO_BLK_ID_BYTES} bytes"),
    "block": (_block, "a power of two"),
    "mac": (_mac, "an address of one station, such as 02:00:00:00:00:01"),
    "name": (_name, f"a name of 1 to {VQN_BYTES - 1} bytes"),
}
"""How each kind of value is read, and how it is called in messages."""

REQUIRED = object()
EXAMPLES = {"path": '"disk.img"', "size": '"64M"', "switch": "true", "class": '"module:Class"'}
"""What the documentation shows for a required or chosen key, by its kind."""


class Key(NamedTuple):
    """One key of the vocabulary.

    Attributes:
        kind: of ``KINDS``.
        default: or REQUIRED.
        help: one line.
        least: smallest number.
        most: largest number.
    """

    kind: str
    default: object
    help: str
    least: float = 0
    most: float = float("inf")

    @property
    def expected(self) -> str:
        """What a value looks like, in words."""
        words = KINDS[self.kind][1]
        bounded = self.most != float("inf")
        return f"{words}, {self.least:.15g} to {self.most:.15g}" if bounded else words

    def read(self, path: str, name: str, value: object) -> Any:
        """Return the value, or raise ConfigError."""
        try:
            result = KINDS[self.kind][0](value)
            if isinstance(result, int | float) and not self.least <= result <= self.most:
                raise ValueError
        except (ValueError, KeyError, OverflowError):
            raise ConfigError(path, name, f"expected {self.expected}, not {value!r}") from None
        return result


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
    "associations": Key(
        "integer", _NUMBERS["associations"], "device instances at a time", 1, 65535
    ),
    "connections": Key("integer", _NUMBERS["connections"], "connections at a time", 1, 1 << 20),
    "connect_seconds": Key(
        "seconds", _NUMBERS["connect_seconds"], "for a connection to say who it is", 0.01, 3600
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
    "model": {
        "class": Key("class", REQUIRED, "a DeviceModel of your own"),
        "tvqn": Key("name", "", "name of the device"),
        "python_path": Key("path", "", "directory to find the module in, after what is installed"),
        "options": Key("table", {}, "keyword arguments of the class"),
    },
}
"""The keys of each type of device; "blk" and "mem" are both block devices."""

CHOICES = {"net": (("tap",), ("socket", "peer"), ("echo",))}
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
    """

    type: str
    tvqn: str
    values: Mapping[str, Any]
    where: tuple[str, str]


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


def _table(
    path: str, prefix: str, keys: Mapping[str, Key], given: Mapping[str, object]
) -> dict[str, Any]:
    """Read one table by its vocabulary."""
    for name in given:
        if name not in keys:
            near = difflib.get_close_matches(name, keys, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(keys)}"
            raise ConfigError(path, prefix + name, f"unknown key; {hint}")
    values = {}
    for name, key in keys.items():
        if name in given:
            values[name] = key.read(path, prefix + name, given[name])
        elif key.default is REQUIRED:
            raise ConfigError(path, prefix + name, f"missing; expected {key.expected}")
        else:
            values[name] = key.default
    return values


def device(path: str, prefix: str, kind: str, given: Mapping[str, object]) -> Device:
    """Read one device. Raises ConfigError."""
    if kind not in DEVICES:
        raise ConfigError(path, prefix + "type", f"expected {' or '.join(DEVICES)}, not {kind!r}")
    values = _table(path, prefix, DEVICES[kind], given)
    if groups := CHOICES.get(kind):
        given_groups = [group for group in groups if any(values[name] for name in group)]
        if len(given_groups) != 1 or not all(values[name] for name in given_groups[0]):
            words = ", or ".join(" with ".join(group) for group in groups)
            raise ConfigError(path, prefix.rstrip("."), f"expected exactly one of: {words}")
    tvqn = values.pop("tvqn")
    return Device(kind, tvqn, values, (path, prefix.rstrip(".")))


def _named(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Name each device that has no name yet. Raises ConfigError for a name given twice."""
    taken: set[str] = set()
    for one in devices:
        if one.tvqn in taken:
            raise ConfigError(*one.where, f"tvqn {one.tvqn!r} is taken: give each its own")
        if one.tvqn:
            taken.add(one.tvqn)
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
            taken.add(name)
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


def build(
    path: str,
    listen: tuple[str, ...],
    devices: tuple[Device, ...],
    limits: Mapping[str, object],
) -> Config:
    """Put a configuration together and check what concerns all of it. Raises ConfigError."""
    if not devices:
        raise ConfigError(path, "device", "nothing to serve: name at least one device")
    values = _table(path, "limits.", LIMITS, limits)
    poll_us = values.pop("poll_us")
    if values["queue_bytes"] < values["request_bytes"]:
        raise ConfigError(path, "limits.queue_bytes", "less than limits.request_bytes")
    urls = []
    for number, text in enumerate(listen or (DEFAULT_LISTEN,)):
        where = f"listen[{number}]"
        try:
            url = parse_url(text)
        except ConfigError as error:
            raise ConfigError(path, where, str(error)) from None
        if url.tvqn:
            raise ConfigError(path, where, f"{text}: a listener serves all devices; no name")
        urls.append(url)
    return Config(tuple(urls), _named(devices), Limits(**values), poll_us)


def load(path: str) -> Config:
    """Read a TOML file. Raises ConfigError."""
    try:
        data = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(path, "", str(error)) from None
    for name in data:
        if name not in TOP:
            near = difflib.get_close_matches(name, TOP, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(TOP)}"
            raise ConfigError(path, name, f"unknown key; {hint}")
    listen = data.get("listen", [])
    if not isinstance(listen, list) or not all(isinstance(text, str) for text in listen):
        raise ConfigError(path, "listen", f'expected a list of URLs, such as ["{DEFAULT_LISTEN}"]')
    admin = ADMIN.read(path, "admin", data["admin"]) if "admin" in data else ""
    limits = data.get("limits", {})
    rows = data.get("device", [])
    if not isinstance(limits, dict):
        raise ConfigError(path, "limits", "expected a table: [limits]")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(path, "device", "expected tables: [[device]]")
    devices = []
    for number, row in enumerate(rows):
        given = dict(row)
        kind = given.pop("type", None)
        devices.append(device(path, f"device[{number}].", str(kind), given))
    return build(path, tuple(listen), tuple(devices), limits)._replace(admin=admin)


def describe() -> str:
    """Return the documentation of the file, which is itself a valid file."""
    lines = ["# All keys of a target's configuration file, with their defaults.", ""]
    lines += [f'listen = ["{DEFAULT_LISTEN}"]  # where to listen; loopback unless you say more', ""]

    def rows(keys: Mapping[str, Key], chosen: tuple[str, ...] = ()) -> None:
        for name, key in keys.items():
            if key.default is REQUIRED or name in chosen:
                value = EXAMPLES[key.kind]
            elif isinstance(key.default, bool | dict):
                value = str(key.default).lower()
            else:
                value = repr(key.default).replace("'", '"')
            off = "# " if key.default == "" else ""  # no value is the default
            lines.append(f"{off}{name} = {value}  # {key.help}; {key.expected}")

    lines += [f'# admin = "/run/vof/target.sock"  # {ADMIN.help}; {ADMIN.expected}', ""]
    lines.append("[limits]")
    rows(LIMITS)
    for kind, keys in DEVICES.items():
        lines += ["", "[[device]]", f'type = "{kind}"']
        rows(keys, CHOICES.get(kind, ((),))[-1])
    return "\n".join(lines)
