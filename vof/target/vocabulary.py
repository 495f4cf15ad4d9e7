# SPDX-License-Identifier: BSD-3-Clause
"""The whole vocabulary of a target's configuration, as tables.

They parse, check, give defaults and explain themselves: see ``keys``.
"""

import dataclasses

from vof.target.keys import REQUIRED, Key
from vof.target.limits import Limits
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
    "vhost-user": {
        "tvqn": Key("name", "", "name of the device"),
        "socket": Key("socket", REQUIRED, "where the backend of another program is reached"),
        "device": Key("device", "blk", "what the backend is"),
        "listen": Key("switch", False, "the socket is made here, and the backend connects to it"),
        "command": Key("command", "", "the backend, run and supervised by the target"),
        "queues": Key("integer", 0, "queues that are used at most; 0: all", 0, 1024),
        "queue_size": Key("power", 128, "size of each queue", 2, 32768),
        "memory": Key(
            "size", 64 << 20, "that the backend sees: rings and requests", 1 << 20, 1 << 40
        ),
        "replay": Key("replay", "", "what happens to requests in flight when the backend ends"),
        "start_seconds": Key("seconds", 10.0, "for the backend to be there at first", 0.01, 3600),
        "tag": Key("text", "", "name of a file system; default: that of the device"),
        "mac": Key("mac", "", "address of a network device; by default made from its name"),
        "mtu": Key("integer", DEFAULT_MTU, "of a network device", LEAST_MTU, MOST_MTU),
    },
}
"""The keys of each type of device; "blk" and "mem" are both block devices."""

BRIDGES = ("vhost-user",)
"""Types that stand in a table of their own, ``bridge``: what is served is another's device."""
OUTSIDE = ("tvqn", "allow")
"""Keys of a bridged device that stand outside that table."""

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
