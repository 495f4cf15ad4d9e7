#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Bytes that no correct peer sends, for the parsers of every dialect, on both sides.

    python tests/fuzz/fuzz_stream.py --seconds 60 [--seed N] [SIDE...]

Starts from the corpus (hex files, "#" begins a comment) and from messages made at random. Each
input goes in whole and cut at random places: both must give what a plain reader of the whole bytes
finds in them, and nothing but the errors that the protocol names. A finding is printed as a line of
hex that belongs into the corpus.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Collection
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.fuzz import sides_keyed, sides_v0, sides_v5  # noqa: E402
from tests.fuzz.side import LENGTHS, NUMBERS  # noqa: E402

SIDES = {**sides_v5.SIDES, **sides_v0.SIDES, **sides_keyed.SIDES}


def check(name, data, rng):
    """Check that the bytes do the same however they are cut."""
    side = SIDES[name]
    whole = side.run(data)
    assert side.run(data, lambda: rng.randint(1, 40)) == whole
    assert side.run(data, lambda: rng.choice((1, 16, 5_000, 60_000))) == whole
    if side.echo:
        side.echo(data)
        side.echo(data, lambda: rng.choice((1, 16, 5_000)))


# -- inputs ---------------------------------------------------------------------------------------


def corpus(side):
    """Return the inputs that are kept for a side, by name."""
    return {
        path.stem: parse(path.read_text()) for path in sorted((HERE / "corpus" / side).iterdir())
    }


def parse(text):
    """Return the bytes of a hex file. ``*N`` after a group repeats it."""
    data = b""
    for group in " ".join(line.partition("#")[0] for line in text.splitlines()).split():
        digits, _, times = group.partition("*")
        data += bytes.fromhex(digits) * int(times or 1)
    return data


def written(data):
    """Return bytes in the form of a hex file."""
    runs = [(byte, len(list(run))) for byte, run in itertools.groupby(data)]
    groups = [f" {byte:02x}*{n} " if n > 8 else f"{byte:02x}" * n for byte, n in runs]
    return "".join(groups).strip()


def mutated(rng, data, message):
    """Return the bytes with one thing wrong."""
    data = bytearray(data)
    place = rng.randint(0, len(data))
    other = rng.randint(place, min(len(data), place + rng.choice((4, 64, 4096))))
    match rng.randrange(7):
        case 0 if place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        case 1:
            data[place : place + 4] = rng.choice(LENGTHS).to_bytes(4, "little")
        case 2:
            data[place : place + 2] = rng.choice(NUMBERS).to_bytes(2, "little")
        case 3:
            del data[place:other]
        case 4:
            data[place:place] = data[place:other]
        case 5:
            data[place:place] = rng.randbytes(rng.randint(1, 40))
        case _:
            data[place:place] = message(rng)
    return bytes(data)


def made(rng, seeds, message):
    """Return one new input."""
    data = rng.choice(seeds) if rng.random() < 0.7 else b""
    for _ in range(rng.randrange(5)):
        data += message(rng)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        data = mutated(rng, data, message)
    return data[: 512 * 1024]


def fuzz(rng, seconds=None, rounds=None, names: Collection[str] = tuple(SIDES)):
    """Try inputs until the time is over. Raises AssertionError with the input that fails."""
    seeds = {name: [b"", *corpus(name).values()] for name in names}
    end = time.monotonic() + (seconds if seconds is not None else 1e9)
    count = 0
    while time.monotonic() < end and count != rounds:
        count += 1
        for name in names:
            data = made(rng, seeds[name], SIDES[name].message)
            try:
                check(name, data, rng)
            except Exception as error:
                raise AssertionError(f"{name}: {error!r} for {written(data)}") from error
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("sides", nargs="*", metavar="SIDE", help=f"of {', '.join(SIDES)}")
    args = parser.parse_args()
    names = args.sides or tuple(SIDES)
    if unknown := set(names) - SIDES.keys():
        parser.error(f"no such side: {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    print(f"seed {args.seed}", flush=True)
    count = fuzz(random.Random(args.seed), args.seconds, names=names)
    print(f"{count} rounds of {len(names)} inputs, nothing found")


if __name__ == "__main__":
    main()
