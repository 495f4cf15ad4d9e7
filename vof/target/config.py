# SPDX-License-Identifier: BSD-3-Clause
"""What a target serves, as data: the TOML file and the command line, read by ``vocabulary``.

Whatever is wrong is named by file, or option, and dotted key.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vof.errors import ConfigError
from vof.target.access import THIS_MACHINE, Allow
from vof.target.keys import REQUIRED, read_table, rows, unknown
from vof.target.limits import Limits
from vof.target.vocabulary import (
    ADMIN,
    ALLOW,
    BRIDGES,
    CHOICES,
    DEFAULT_LISTEN,
    DEVICES,
    EXAMPLE_ALLOW,
    FREE,
    LIMITS,
    OUTSIDE,
    READ_ONLY,
    RISING,
    SHORT,
)
from vof.transport import Url, parse_url


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


def read_device(path: str, prefix: str, row: Mapping[str, object]) -> Device:
    """Read a device of a file: by its ``type``, or by its ``bridge``. Raises ConfigError."""
    given = dict(row)
    if "bridge" not in given:
        kind = str(given.pop("type", None))
        if kind in BRIDGES:
            text = (
                f'expected bridge = {{ type = "{kind}", ... }}: it is a device of another program'
            )
            raise ConfigError(path, prefix + "type", text)
        return device(path, prefix, kind, given)
    bridge = given.pop("bridge")
    if not isinstance(bridge, dict) or bridge.get("type") not in BRIDGES:
        text = f'expected a table, such as {{ type = "{BRIDGES[0]}", socket = "vhost.sock" }}'
        raise ConfigError(path, prefix + "bridge", f"{text}, not {bridge!r}")
    for name in given:
        if name not in OUTSIDE:
            raise unknown(path, prefix, name, ("bridge", *OUTSIDE))
    inside = dict(bridge)
    kind = inside.pop("type")
    for name in OUTSIDE:
        if name in inside:
            text = f"it stands beside the bridge: {prefix}{name}"
            raise ConfigError(path, f"{prefix}bridge.{name}", text)
    if "tvqn" in given:
        inside["tvqn"] = DEVICES[kind]["tvqn"].read(path, prefix + "tvqn", given["tvqn"])
    read = device(path, f"{prefix}bridge.", kind, inside)
    if "allow" in given:
        read = read._replace(allow=_allow(path, f"{prefix}allow", kind, given["allow"]))
    return read


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
            values = one.values
            source = values.get("path") or values.get("class", "").rpartition(":")[2]
            source = source or (values["socket"] if one.type in BRIDGES else "")
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

    Two commas are one that belongs to a value. The module of a model is also looked for in the
    current directory.

    Raises:
        ConfigError: it names the option and the key.
    """
    keys = DEVICES[name]
    first = next((key for key, row in keys.items() if row.default is REQUIRED), None)
    given: dict[str, object] = {"python_path": os.curdir} if "python_path" in keys else {}
    parts = [part.replace(",,", ",") for part in re.split(r"(?<!,),(?!,)", text) if part]
    for number, part in enumerate(parts):
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
        allow = f"allow = {EXAMPLE_ALLOW}  # who may use it; a list"
        own = rows(keys, CHOICES.get(kind, ((),))[-1])
        if kind in BRIDGES:
            named = rows({"tvqn": keys["tvqn"]})
            own = [row for row in own if row not in named]
            lines += ["", "[[device]]", *named, allow, "[device.bridge]", f'type = "{kind}"', *own]
        else:
            lines += ["", "[[device]]", f'type = "{kind}"', *own, allow]
    return "\n".join(lines)
