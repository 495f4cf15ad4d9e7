# SPDX-License-Identifier: BSD-3-Clause
"""``vof console``: this terminal, or standard input and output, at a remote console.

A terminal is raw meanwhile, so every key goes to the other side but the escape key; however this
ends, the terminal is as it was. Keys that the other side does not take are kept to a bound, then
refused with the bell: the escape key is always seen. What is no terminal is read no faster than the
other side takes it, and has no escape key.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

    from vof.initiator.drivers import Console

STDIN, STDOUT = 0, 1
PIECE = 4096
PIECES = 16
"""So many pieces of input wait until the device takes them."""
FAREWELL_S = 0.5
"""So long what was typed before the escape key is waited for."""
BELL = b"\a"
ENDS = (signal.SIGTERM, signal.SIGHUP)

EPILOG = """In a terminal every key goes to the console, but for the escape key, which ends.
Without one: at the end of the input, once the device took all of it, this goes on to print until
nothing came for --linger seconds.

exit codes:
  0    ended by the escape key, or after the end of the input
  1    failed, or the connection was lost (said on stderr)
  2    wrong command line
  129, 130, 143  ended by SIGHUP, SIGINT, SIGTERM"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.add_argument("url", help="of a device of type console")
    parser.add_argument(
        "--escape",
        default="^]",
        metavar="KEY",
        help="what ends it in a terminal: ^ and a letter for the control key, a character, or none",
    )
    parser.add_argument(
        "--linger",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="after the end of the input, end when nothing came for so long (0.5; inf: never)",
    )


def run(args: argparse.Namespace) -> int:
    """Be a terminal."""
    import trio

    from vof.errors import ConfigError

    if not args.linger >= 0:
        raise ConfigError("command line", "--linger", f"seconds, 0 or more, not {args.linger}")
    return trio.run(_main, args.url, _key(args.escape), args.escape, args.linger)


def _key(text: str) -> bytes | None:
    """Return the byte of an escape key, or None. Raises ConfigError."""
    from vof.errors import ConfigError

    if text == "none":
        return None
    if len(text) == 2 and text[0] == "^" and "?" <= text[1].upper() <= "_":
        return bytes((ord(text[1].upper()) ^ 0x40,))
    if len(text) == 1 and text.isascii():
        return text.encode()
    raise ConfigError("command line", "--escape", f"^ and a letter, or none, not {text!r}")


async def _main(url: str, escape: bytes | None, name: str, linger: float) -> int:
    """Connect and talk until one side ends it; return the exit code."""
    import trio

    import vof
    from vof.initiator.drivers import Console

    code = 0
    ends = [one for one in ENDS if signal.getsignal(one) != signal.SIG_IGN]  # nohup
    with trio.open_signal_receiver(*ends) as signals:
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                nonlocal code
                code = 128 + await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            async with vof.connect(url) as device, Console(device) as console:
                if os.isatty(STDIN):
                    end_hint = f"{name} ends" if escape else "there is no escape key"
                    print(f"connected to {url}; {end_hint}", file=sys.stderr, flush=True)
                    with _raw(STDIN):
                        await Talk(console, escape).run(linger)
                else:
                    await Talk(console).run(linger)
            nursery.cancel_scope.cancel()
    return code


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Make a terminal raw, and what it was at the end."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):  # it is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
            print(file=sys.stderr, flush=True)


class Talk:
    """Both directions between standard input, standard output and a console."""

    def __init__(self, console: "Console", escape: bytes | None = None) -> None:
        """Talk to ``console``; with ``escape``, standard input is a terminal."""
        import trio

        self._console = console
        self._escape = escape
        self._keys = os.isatty(STDIN)
        self._patience = float("inf")
        self._listening = trio.CancelScope()

    async def run(self, linger: float) -> None:
        """Talk until the escape key, or until ``linger`` seconds of silence after the end."""
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._print)
            async with trio.open_nursery() as sending:
                pieces, taken = trio.open_memory_channel[bytes](PIECES)
                sending.start_soon(self._send, taken)
                escaped = await self._read(pieces)
                if escaped:
                    sending.cancel_scope.deadline = trio.current_time() + FAREWELL_S
            if escaped:
                nursery.cancel_scope.cancel()
            self._patience = linger
            self._listening.deadline = trio.current_time() + linger

    async def _print(self) -> None:
        """Print what comes, until the patience ends."""
        import trio

        while True:
            data = b""
            with trio.move_on_after(self._patience) as self._listening:
                data = await self._console.read()
            if not data:
                return
            await trio.to_thread.run_sync(_write, data, abandon_on_cancel=True)

    async def _send(self, pieces: "trio.MemoryReceiveChannel[bytes]") -> None:
        """Give the device what was read, one after another."""
        async for piece in pieces:
            await self._console.write(piece)

    async def _read(self, pieces: "trio.MemorySendChannel[bytes]") -> bool:
        """Read standard input to its end, or to the escape key; return whether it was that."""
        import trio

        with pieces:
            while data := await _input():
                before, key, _ = data.partition(self._escape) if self._escape else (data, b"", b"")
                if not self._keys:
                    await pieces.send(before)
                elif before:
                    try:
                        pieces.send_nowait(before)
                    except trio.WouldBlock:
                        await trio.to_thread.run_sync(_write, BELL, abandon_on_cancel=True)
                if key:
                    return True
        return False


async def _input() -> bytes:
    """Wait for standard input and return some of it, b"" at its end. Suspends."""
    import trio

    while True:
        try:
            await trio.lowlevel.wait_readable(STDIN)
        except PermissionError:  # a file, which is always readable
            await trio.lowlevel.checkpoint()
        try:
            return os.read(STDIN, PIECE)
        except BlockingIOError:
            pass
        except OSError:
            return b""  # the terminal is gone


def _write(data: bytes) -> None:
    """Write all to standard output. Blocks."""
    view = memoryview(data)
    while view:
        view = view[os.write(STDOUT, view) :]
