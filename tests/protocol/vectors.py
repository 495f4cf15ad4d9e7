# SPDX-License-Identifier: BSD-3-Clause
"""Golden vectors as tests/vectors/README.md describes them, of either dialect."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from vof.protocol.wire import Layout

VECTORS = Path(__file__).parents[1] / "vectors"


class Vectors(NamedTuple):
    """All of one dialect: by file, alone, in exchanges, and both together."""

    files: dict[str, dict]
    single: list[dict]
    exchanges: list[dict]
    every: list[dict]


def load(dialect: str) -> Vectors:
    paths = sorted((VECTORS / dialect).glob("*.json"))
    files = {path.stem: json.loads(path.read_text()) for path in paths}
    single = [vector for file in files.values() for vector in file.get("vectors", ())]
    exchanges = [exchange for file in files.values() for exchange in file.get("exchanges", ())]
    steps = [step for exchange in exchanges for step in exchange["steps"]]
    return Vectors(files, single, exchanges, single + steps)


def each(vectors: list[dict]) -> pytest.MarkDecorator:
    """Parametrize a test by ``vector``."""
    return pytest.mark.parametrize(
        "vector", vectors, ids=lambda vector: f"{vector['layout']}: {vector['meaning'][:40]}"
    )


def unroll(text: str) -> bytes:
    """Return the bytes of a text."""
    data = b""
    for piece in text.split():
        digits, _, times = piece.partition("*")
        data += bytes.fromhex(digits) * int(times or 1)
    return data


def whole(step: dict) -> bytes:
    """Return a message with what follows it."""
    return unroll(step["hex"]) + unroll(step.get("payload", ""))


def encoded(layout: Layout, vector: dict) -> bytes:
    """Return what our table makes of a vector's fields."""
    return layout.encode(_values(vector))


def expected(layout: Layout, vector: dict) -> dict[str, int | bytes]:
    """Return what decoding a vector must give: text is filled up to the field."""
    widths = {field.name: field.width for field in layout.fields()}
    return {
        name: value.ljust(widths[name], b"\0") if isinstance(value, bytes) else value
        for name, value in _values(vector).items()
    }


def _values(vector: dict) -> dict[str, int | bytes]:
    return {k: v.encode() if isinstance(v, str) else v for k, v in vector["fields"].items()}


def never_set(layouts: Mapping[str, Layout], single: list[dict]) -> set[tuple[str, str]]:
    """Return the fields that are 0 in all vectors, by layout and name."""
    return {
        (name, field)
        for name, layout in layouts.items()
        for field in layout.names
        if not any(v["fields"][field] for v in single if v["layout"] == name)
    }
