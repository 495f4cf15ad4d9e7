# SPDX-License-Identifier: BSD-3-Clause
"""``vof install``: the service's units, the manual pages, a first configuration.

What is there already and the same is left alone, and a configuration always: it may be run again
after each upgrade.
"""

import argparse
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vof.errors import ConfigError

UNITS = Path(__file__).parent / "units"
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What the service cannot see (ProtectHome=, PrivateTmp=)."""

NEXT = """next:
  systemctl daemon-reload
  edit {config}
  systemctl enable --now vof-target.service   # or vof-target.socket: see the comment in it
"""


class File(NamedTuple):
    """One file to install.

    Attributes:
        path: where, without DESTDIR.
        text: what is in it; of a link, where it leads.
        kind: "file"; "config", which is never replaced or removed; "link".
    """

    path: Path
    text: str
    kind: str = "file"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = (
        "Install vof itself where the service can see it, then the service:\n"
        "  sudo python3 -m venv /opt/vof\n"
        "  sudo /opt/vof/bin/pip install .\n"
        "  sudo /opt/vof/bin/vof install\n\n"
        "It may be run again; a configuration that exists is kept."
    )
    parser.add_argument("--prefix", default="/usr/local", help="default %(default)s")
    parser.add_argument(
        "--sysconfdir", default="/etc", metavar="DIR", help="of the configuration (default /etc)"
    )
    parser.add_argument(
        "--destdir", default="", metavar="DIR", help="put all below it, for packaging"
    )
    parser.add_argument(
        "--program",
        default="",
        metavar="FILE",
        help="the vof that the service runs (default: this)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument(
        "--remove", action="store_true", help="remove what was installed, but the configuration"
    )


def plain(name: str, path: str) -> str:
    """Return an absolute path that a unit can name as it is. Raises ConfigError."""
    if not re.fullmatch(r"(/[\w.,:+@=-]+)+", path, re.ASCII):
        raise ConfigError(
            name, "", f"expected an absolute path of letters, digits and .,:+@=-_, not {path!r}"
        )
    return path


def program() -> str:
    """Return the path of this vof. Raises ConfigError where the service could not run it."""
    found = Path(sysconfig.get_path("scripts"), "vof")
    if not found.exists():
        raise ConfigError("--program", "", f"no {found}: install vof with pip, or name the program")
    for path in (found, Path(sys.executable).resolve(), Path(__file__).resolve()):
        for top in filter(path.is_relative_to, HIDDEN):
            raise ConfigError(
                "--program",
                "",
                f"{path} is in {top}, which is hidden from the service: install vof elsewhere,"
                " such as in /opt/vof, or name the program",
            )
    return str(found)


def files(prefix: Path, sysconfdir: Path, binary: str) -> Iterator[File]:
    """Give all there is to install."""
    from vof.cli import man

    values = {"@PROGRAM@": binary, "@SYSCONFDIR@": str(sysconfdir)}
    for name in ("vof-target.service", "vof-target.socket"):
        text = (UNITS / name).read_text()
        for key, value in values.items():
            text = text.replace(key, value)
        yield File(prefix / "lib/systemd/system" / name, text)
    for topic in man.topics():
        number = man.section(topic)
        name = f"{man.page(topic)}.{number}"
        yield File(prefix / "share/man" / f"man{number}" / name, man.render(topic))
    if Path(binary) != prefix / "bin/vof":
        yield File(prefix / "bin/vof", binary, "link")
    yield File(sysconfdir / "vof/target.toml", (UNITS / "target.toml").read_text(), "config")


def current(file: File, place: Path) -> bool:
    """Return whether ``place`` is as it should be, or not ours to change. Raises ConfigError."""
    if file.kind == "config":
        return place.exists()
    if file.kind == "file":
        return place.is_file() and place.read_bytes() == file.text.encode()
    if place.exists() and not place.is_symlink():
        raise ConfigError(str(place), "", "is another program: remove it, or choose --prefix")
    return place.is_symlink() and os.readlink(place) == file.text


def _ours(file: File, place: Path) -> bool:
    """Return whether there is something that an installation put there."""
    return place.is_symlink() if file.kind == "link" else place.is_file()


def _remove(file: File, place: Path) -> None:
    place.unlink()


def put(file: File, place: Path) -> None:
    """Write one file in one step. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.new")
    fresh.unlink(missing_ok=True)
    if file.kind == "link":
        fresh.symlink_to(file.text)
    else:
        fresh.write_text(file.text)
        fresh.chmod(0o644)
    fresh.replace(place)


def run(args: argparse.Namespace) -> int:
    """Install or remove."""
    prefix = Path(plain("--prefix", args.prefix))
    sysconfdir = Path(plain("--sysconfdir", args.sysconfdir))
    act, verb = (_remove, "remove") if args.remove else (put, "write")
    # Which one it was does not matter when it goes.
    binary = "/vof" if args.remove else plain("--program", args.program or program())
    for file in files(prefix, sysconfdir, binary):
        place = Path(args.destdir + str(file.path))
        if args.remove and (file.kind == "config" or not _ours(file, place)):
            continue
        if not args.remove and current(file, place):
            print(f"keep {place}")
            continue
        print(f"would {verb} {place}" if args.dry_run else f"{verb} {place}")
        if not args.dry_run:
            act(file, place)
    if not (args.destdir or args.remove or args.dry_run):
        print(NEXT.format(config=sysconfdir / "vof/target.toml"), end="")
    return 0
