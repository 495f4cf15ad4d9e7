# SPDX-License-Identifier: BSD-3-Clause
"""The vocabulary of configuration: how one key is read, checked and explained, and a table of keys.

``Key`` and ``KINDS`` know values; ``config`` says which keys there are.
"""

import difflib
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from vof.errors import ConfigError
from vof.protocol.v5 import VQN_BYTES
from vof.sizes import parse_size
from vof.target.access import ORIGINS, Origin, parse_name, parse_origin
from vof.virtio.blk import SECTOR, VIRTIO_BLK_ID_BYTES
from vof.virtio.constants import DEVICE_NAMES
from vof.virtio.crossing import REPLAYS
from vof.virtio.net import format_mac, parse_mac


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


def _pattern(value: object) -> str:
    return parse_name(_name(value))


def _origin(value: object) -> Origin:
    return parse_origin(_text(value))


def _block(value: object) -> int:
    size = _size(value)
    if size < SECTOR or size & (size - 1):
        raise ValueError
    return size


def _device(value: object) -> str | int:
    if value in DEVICE_NAMES.values():
        return str(value)
    number = _integer(value)
    return DEVICE_NAMES.get(number, number)


def _power(value: object) -> int:
    number = _integer(value)
    if number < 1 or number & (number - 1):
        raise ValueError
    return number


def _command(value: object) -> tuple[str, ...]:
    words = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise ValueError
    return tuple(map(_text, words))


def _replay(value: object) -> str:
    if value not in REPLAYS:
        raise ValueError
    return _text(value)


KINDS: dict[str, tuple[Callable[[object], Any], str]] = {
    "integer": (_integer, "an integer"),
    "power": (_power, "a power of two"),
    "size": (_size, 'a number of bytes, such as 4096 or "64M"'),
    "seconds": (_seconds, "a number of seconds"),
    "switch": (_switch, "true or false"),
    "text": (_text, "text"),
    "path": (_text, "the path of a file"),
    "socket": (_text, "the path of a unix socket"),
    "class": (_class, "module:Class"),
    "port": (_text, "a path where nothing is, or the same of an earlier run"),
    "table": (_table_of, "a table of names and values"),
    "device": (_device, f"a type of device ({', '.join(DEVICE_NAMES.values())}) or its number"),
    "command": (_command, "a program and its arguments"),
    "replay": (_replay, " or ".join(REPLAYS)),
    "serial": (_serial, f"text of 1 to {VIRTIO_BLK_ID_BYTES} bytes"),
    "block": (_block, "a power of two"),
    "mac": (_mac, "an address of one station, such as 02:00:00:00:00:01"),
    "pattern": (_pattern, 'a name, or how it begins and "*"'),
    "origin": (_origin, ORIGINS),
    "name": (_name, f"a name of 1 to {VQN_BYTES - 1} bytes"),
}
"""How each kind of value is read, and how it is called in messages."""

REQUIRED = object()
EXAMPLES = {
    "origin": '"local"',
    "path": '"disk.img"',
    "size": '"64M"',
    "switch": "true",
    "class": '"module:Class"',
    "port": '"console.sock"',
    "socket": '"vhost.sock"',
}
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


def unknown(path: str, prefix: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a key that is not known: what was meant, or what there is."""
    near = difflib.get_close_matches(name, list(known), 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return ConfigError(path, prefix + name, f"unknown key; {hint}")


def read_table(
    path: str, prefix: str, keys: Mapping[str, Key], given: Mapping[str, object]
) -> dict[str, Any]:
    """Read one table by its vocabulary; what is not given has its default. Raises ConfigError."""
    for name in given:
        if name not in keys:
            raise unknown(path, prefix, name, keys)
    values = {}
    for name, key in keys.items():
        if name in given:
            values[name] = key.read(path, prefix + name, given[name])
        elif key.default is REQUIRED:
            raise ConfigError(path, prefix + name, f"missing; expected {key.expected}")
        else:
            values[name] = key.default
    return values


def rows(keys: Mapping[str, Key], chosen: Collection[str] = ()) -> list[str]:
    """Return the documentation of a table, as TOML; examples stand for what is chosen."""
    lines = []
    for name, key in keys.items():
        if key.default is REQUIRED or name in chosen:
            value = EXAMPLES[key.kind]
        elif isinstance(key.default, bool | dict):
            value = str(key.default).lower()
        else:
            value = repr(key.default).replace("'", '"')
        off = "# " if key.default == "" and name not in chosen else ""  # no value is the default
        lines.append(f"{off}{name} = {value}  # {key.help}; {key.expected}")
    return lines
