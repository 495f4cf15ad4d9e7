# SPDX-License-Identifier: BSD-3-Clause
"""``vof target``: serve devices."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from vof import __version__
from vof.cli.admin import default_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from vof.target.config import Config

OPTIONS = {
    "blk": ("PATH[,…]", "a disk over a file or block device"),
    "mem": ("SIZE[,…]", "a disk in memory"),
    "rng": ("[…]", "a source of random bytes"),
    "net": ("LINK[,…]", "a network device: echo, tap=NAME, or socket=PATH,peer=PATH"),
    "console": ("PORT[,…]", "a console: socket=PATH, or pty=PATH for a link to a pty"),
    "model": ("MODULE:CLASS[,…]", "a device of your own"),
    "vhost-user": ("SOCKET[,…]", "the device of a local program: qemu-storage-daemon, DPDK, ..."),
}
"""How each device is given on the command line, and what it is."""

EPILOG = """DEVICE options take values by commas, by the keys of the configuration file
(two commas in a row are one that belongs to a value):
  --blk disk.img,ro,queues=4,tvqn=disk0   --mem 64M   --rng tvqn=rng0
  --net echo   --net tap=tap0,mtu=9000   --net socket=ours.sock,peer=theirs.sock
  --console socket=console.sock   --console pty=console.tty,cols=80,rows=25
  --model upper:Upper,tvqn=upper0,mark=!
  --vhost-user disk.sock,tvqn=disk0   --vhost-user fs.sock,device=fs,tag=share

The module of --model may lie in the current directory. What is no key of the file goes to the
class, as text; a file has python_path and [device.options] for the two.

Each device is announced on stdout by its URL, one a line, once the target serves.
SIGTERM and SIGINT drain: requests in flight end first; a second signal cuts them.
SIGHUP reads the configuration file again; what is the same keeps its connections.

exit codes:
  0   ended as asked, nothing in flight was cut
  2   wrong configuration or command line
  3   a device cannot be opened
  4   cannot listen
  5   the drain deadline passed: requests in flight were cut
  70  internal error"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file, and FILE.d/*.toml; see --help-config"
    )
    parser.add_argument(
        "--admin",
        metavar="PATH",
        help="the socket of vof status and others, or none; by default target.sock in "
        "$RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/vof, or /tmp/vof-UID",
    )
    parser.add_argument("--check", action="store_true", help="say what would be done, and end")
    parser.add_argument("--help-config", action="store_true", help="explain the file, and end")
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="URL",
        help="where to listen (default vof+tcp://127.0.0.1:8549); may be repeated",
    )
    for name, (form, what) in OPTIONS.items():
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar=form,
            nargs="?",
            const="",
            help=what,
        )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of [limits], such as queue_bytes=16M or poll_us=0",
    )

    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="[IVQN@]FROM[,ro]",
        help="who may use the devices; FROM: an address, a network, unix, unix:UID, local or any; "
        "the first that matches decides (default local: this machine); may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Serve, check, or explain."""
    from vof.errors import ConfigError
    from vof.target import config, files

    if args.help_config:
        print(config.describe())
        return 0
    load: Callable[[], Config] | None = None
    devices = tuple(
        config.option(name, text)
        for name in OPTIONS
        for text in getattr(args, name.replace("-", "_"))
    )
    if args.config:
        if devices or args.listen or args.limit or args.allow:
            text = "devices, --listen, --limit and --allow belong into the file"
            raise ConfigError("--config", "", text)
        load = partial(files.load, args.config)
        settings = load()
    else:
        limits = dict(text.partition("=")[::2] for text in args.limit)
        devices = config.allowed(devices, args.allow)
        settings = config.build("command line", tuple(args.listen), devices, limits)
    from vof.target import daemon
    from vof.target.admin import NOWHERE, Place

    if args.check:
        show(settings)
        return daemon.check(settings)
    path = args.admin or settings.admin
    place = Place(path) if path else Place(default_socket(), default=True)
    return daemon.run(settings, load, NOWHERE if path == "none" else place, __version__)


def show(settings: "Config") -> None:
    """Print what would be done."""
    for url in settings.listen:
        print(f"listen on {url}")
    for device in settings.devices:
        values = ", ".join(f"{key}={value}" for key, value in device.values.items() if value != "")
        print(f"serve {device.tvqn} ({device.type}: {values})")
        for entry in device.allow:
            may = "read" if entry.read_only else "use"
            print(f"  {entry.ivqn} from {entry.origin} may {may} it")
        if not device.allow:
            print("  nobody may use it")
    for key, value in vars(settings.limits).items():
        print(f"limit {key} = {value}")
    print(f"limit poll_us = {settings.poll_us}")
