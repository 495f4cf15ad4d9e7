# SPDX-License-Identifier: BSD-3-Clause
"""Numbers of bytes as people write them."""

from vof.errors import ConfigError

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(name: str, text: object) -> int:
    """Read a number of bytes, such as 4096, "4k" or "64MiB".

    Raises:
        ConfigError: it names ``name``, the argument or key that the text was given for.
    """
    word = str(text).strip().lower().removesuffix("ib").removesuffix("b")
    unit = word[-1:] if word[-1:].isalpha() else ""
    digits = word.removesuffix(unit)
    if unit not in UNITS or not digits.isdecimal():
        raise ConfigError(name, "", f'expected bytes, such as 4096 or "64M", not {text!r}')
    return int(digits) * UNITS[unit]
