# SPDX-License-Identifier: BSD-3-Clause
"""Notice that the file behind a disk was resized.

Every write of a file is an event too, so the watch fires once and is armed again after a pause: at
most ``PAUSE`` apart while writes go on, and no wake-up at all in an idle process. After it is armed
the size is looked at, so nothing falls between.
"""

import logging
import os

import trio

from vof.target.devices.backing import FileBacking
from vof.target.devices.libc import IN_MODIFY, IN_ONESHOT, inotify_add_watch, inotify_init

log = logging.getLogger(__name__)

PAUSE = 0.25
"""Seconds."""

EVENTS = 4096
"""Bytes; an event without a name has 16."""


async def watch(backing: FileBacking) -> None:
    """Call ``backing.refresh`` after each change of the file, until cancelled.

    Returns at once, and says so in the log, where the system cannot watch. A block device tells
    nothing: its size is looked at when a driver reads the configuration.
    """
    path = b"/proc/self/fd/%d" % backing.fd
    try:
        inotify = inotify_init()
        try:
            while True:
                inotify_add_watch(inotify, path, IN_MODIFY | IN_ONESHOT)
                backing.refresh()
                await trio.lowlevel.wait_readable(inotify)
                os.read(inotify, EVENTS)
                backing.refresh()
                await trio.sleep(PAUSE)
        finally:
            os.close(inotify)
    except OSError as error:
        log.warning("%s: a change of size will not be noticed: %s", backing.path, error.strerror)
