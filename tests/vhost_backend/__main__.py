# SPDX-License-Identifier: BSD-3-Clause
"""A vhost-user backend with a disk: ``python -m tests.vhost_backend --socket PATH --image FILE …``.

A process of its own that speaks the real protocol, and can misbehave (``misbehave``). It says
``ready`` when it listens. SIGUSR1: the disk has grown to its file's size. It serves one frontend
after the other, and completes requests in any order and in batches of any size.
"""

import argparse
import errno
import os
import signal
import socket
import time
from pathlib import Path

from tests.vhost_backend.backend import Backend
from tests.vhost_backend.disk import FEATURES, Disk
from tests.vhost_backend.misbehave import find
from tests.vhost_backend.misbehaviour import Misbehaviour
from vof.virtio import vhost_user as vu
from vof.virtio.constants import VIRTIO_F_RING_PACKED, bit
from vof.virtio.vhost_user import Protocol

PROTOCOL = (
    Protocol.MQ,
    Protocol.REPLY_ACK,
    Protocol.BACKEND_REQ,
    Protocol.CONFIG,
    Protocol.INFLIGHT_SHMFD,
    Protocol.RESET_DEVICE,
    Protocol.CONFIGURE_MEM_SLOTS,
    Protocol.STATUS,
)
AGAIN_S = 0.02


def sockets(options):
    """Yield a socket for each frontend, one after the other, for ever."""
    if not options.connect:
        Path(options.socket).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options.socket)
        listener.listen()
        os.write(1, b"ready\n")
        while True:
            yield listener.accept()[0]
    os.write(1, b"ready\n")
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(options.socket)
            yield sock
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                raise
            time.sleep(AGAIN_S)


def arguments():
    parser = argparse.ArgumentParser(prog="vhost_backend")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--connect", action="store_true", help="connect, do not listen")
    parser.add_argument("--image", required=True)
    parser.add_argument("--size", type=int, default=1 << 20, help="of the image, at least")
    parser.add_argument("--queues", type=int, default=2)
    parser.add_argument("--slots", type=int, default=32, help="memory regions")
    parser.add_argument(
        "--features", type=lambda text: int(text, 0), default=FEATURES | bit(vu.F_PROTOCOL_FEATURES)
    )
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--without", default="", help="names of protocol features, with commas")
    parser.add_argument("--die-after", type=int, default=0, help="requests")
    parser.add_argument("--misbehave", action="append", default=[], help="many: a process of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", help="file that lists what happens")
    options = parser.parse_args()
    if options.packed:
        options.features |= bit(VIRTIO_F_RING_PACKED)
    without = options.without.split(",")
    options.protocol = bit(*(one for one in PROTOCOL if one.name not in without))
    return options


def multiply(options):
    """Become one process for each misbehaviour; each has files of its own, by a number."""
    for number, name in enumerate(options.misbehave):
        if os.fork() == 0:
            options.misbehave = [name]
            options.socket = f"{options.socket}.{number}"
            options.image = f"{options.image}.{number}"
            options.log = options.log and f"{options.log}.{number}"
            return
    while True:
        signal.pause()


def main():
    options = arguments()
    if len(options.misbehave) > 1:
        multiply(options)
    wake, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno())
    signal.signal(signal.SIGUSR1, lambda *_: None)
    disk = Disk(options.image, options.size, options.queues)
    misbehaviour = find(*options.misbehave) if options.misbehave else Misbehaviour()
    for sock in sockets(options):
        Backend(options, disk, misbehaviour, sock).run(wake)


if __name__ == "__main__":
    main()
