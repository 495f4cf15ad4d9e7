# SPDX-License-Identifier: BSD-3-Clause
"""A virtual machine that lives for one command: what it is told, and what it tells.

The host's root is read-only under an overlay in the guest's memory, so nothing that the command
does reaches the host.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.lab import kernel as kernels
from tests.lab.errors import LabError
from tests.lab.initramfs import archive
from tests.lab.iwarp import siw
from tests.lab.kernel import Kernel

QEMU = "qemu-system-x86_64"
ACCELERATORS = {
    "kvm": ("-accel", "kvm", "-cpu", "max"),
    "tcg": ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off"),
    "steady": (
        *("-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,la57=off"),
        *("-icount", "shift=2"),
    ),
}
KERNEL = "quiet tsc=reliable mitigations=off audit=0"
ROOT = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
BASE = (
    *("configfs", "virtio_pci", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay"),
    *("ib_uverbs", "rdma_ucm", "dummy"),
)
"""In the order of a machine with an adapter, whose driver needs ib_uverbs: so connections are told
of a device's removal before it waits for those who have it open."""
SOFT = {
    "rxe": ("crc32_generic", "crc32_pclmul", "rdma_rxe"),
    "siw": ("crc32c_generic", "libcrc32c"),
}
"""Soft RDMA devices, as ``rdma link`` calls them: RoCE and iWARP, and the modules they need."""
GUEST = Path(__file__).parent / "guest"
PASSED = ("VOF_", "PYTHON", "PYTEST_", "LANG", "LC_", "TERM", "HOME", "CI", "VIRTUAL_ENV")
"""How names of variables begin that the command sees as we do."""
PROBE_S = 10
BOOTS = 3
TIMED_OUT = 124


class Options(NamedTuple):
    """What a machine has beyond the usual.

    Attributes:
        modules: kernel modules that are inserted before anything else.
        qemu: more arguments of QEMU.
        memory: MiB.
        seconds: that it may run.
        console: the kernel's messages go to our stderr.
        device: of SOFT.
        steady: time passes by instructions, one CPU after the other.
    """

    modules: Sequence[str] = ()
    qemu: Sequence[str] = ()
    memory: int = 2048
    seconds: float = 600
    console: bool = False
    device: str = "rxe"
    steady: bool = False


def _machine(kernel: Kernel, accelerator: str, initrd: Path, words: str) -> list[str]:
    return [
        QEMU,
        *ACCELERATORS[accelerator],
        *("-machine", "q35", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel.image), "-initrd", str(initrd)),
        *("-append", f"console=ttyS0 panic=-1 {words}"),
    ]


def works(kernel: Kernel, accelerator: str) -> bool:
    """Return whether a kernel comes up under an accelerator: tried, as nothing else tells."""
    with tempfile.TemporaryDirectory(prefix="vof-lab-") as name:
        initrd = Path(name) / "initrd"
        initrd.write_bytes(
            archive([("init", (GUEST / "init").read_bytes()), ("settings", b"ORDER=none\n")])
        )
        words = _machine(kernel, accelerator, initrd, "quiet") + ["-m", "256", "-serial", "stdio"]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S
            )
        except subprocess.TimeoutExpired:
            return False
        return b"lab: alive" in done.stdout


def accelerator(kernel: Kernel) -> str:
    """Return "kvm" where that works, else "tcg". The answer holds until the host is rebooted."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = kernels.cache() / "accelerator"
    known = note.read_text().split() if note.exists() else []
    if len(known) != 2 or known[0] != boot:
        known = [boot, "kvm" if works(kernel, "kvm") else "tcg"]
        note.write_text(" ".join(known))
    return known[1]


def _initrd(kernel: Kernel, command: Sequence[str], options: Options) -> bytes:
    """Return the first file system, with all that the guest is to know."""
    modules = kernels.module_files(kernel, [*BASE, *SOFT[options.device], *options.modules])
    if options.device == "siw":
        modules.append(("siw.ko", siw(kernel).read_bytes()))
    settings = {
        "RELEASE": kernel.modules.name,
        "MODULES": str(kernel.modules),
        "TOOLS": str(kernel.tools),
        "ORDER": " ".join(name for name, _ in modules),
        "FOLDER": os.getcwd(),
        "DEVICE": options.device,
    }
    passed = {key: text for key, text in os.environ.items() if key.startswith(PASSED)}
    passed["PATH"] = (
        f"{kernel.tools}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    )
    line = command[0] if len(command) == 1 else shlex.join(command)
    files = {
        "settings": "".join(f"{key}={shlex.quote(text)}\n" for key, text in settings.items()),
        "environment": "".join(
            f"export {key}={shlex.quote(text)}\n" for key, text in passed.items()
        ),
        "command": f"{line}\n",
    }
    ours = [(name, text.encode()) for name, text in files.items()]
    guest = [(path.name, path.read_bytes()) for path in GUEST.iterdir()]
    return archive(
        [
            *((name, data) for name, data in guest + ours if name in {"init", "settings"}),
            *((f"guest/{name}", data) for name, data in guest + ours if name != "init"),
            *((f"modules/{name}", data) for name, data in modules),
        ]
    )


@contextmanager
def _writing(target: int | Path) -> Iterator[int]:
    """A descriptor that can only be written, as QEMU wants it, for one of ours or a new file."""
    if isinstance(target, Path):
        with target.open("wb") as file:
            yield file.fileno()
    else:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=target) as cat:
            assert cat.stdin
            yield cat.stdin.fileno()


def _wait(words: list[str], channels: Mapping[str, int | Path], seconds: float) -> None:
    """Run a machine that writes to these channels. Raises subprocess.TimeoutExpired."""
    words = ["setpriv", "--pdeathsig", "KILL", *words]
    with ExitStack() as stack:
        fds = {name: stack.enter_context(_writing(to)) for name, to in channels.items()}
        for name, fd in fds.items():
            words += ["-add-fd", f"fd={fd},set={fd}"]
            words += ["-chardev", f"file,id={name},path=/dev/fdset/{fd},append=on"]
        machine = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2, pass_fds=fds.values())
        try:
            machine.wait(seconds)
        finally:
            machine.kill()
            machine.wait()


def run(command: Sequence[str], options: Options) -> int:
    """Run a command in a machine of its own.

    Its output goes to our stdout and stderr as it comes. A machine that does not come so far as to
    begin is tried again: under emulation, one boot in thirty ends in a kernel that stumbles over
    its own patching.

    Returns:
        Its exit status; 124 where the time was up.

    Raises:
        LabError: no machine came so far, or it ended before the command did.
    """
    kernel = kernels.get()
    with tempfile.TemporaryDirectory(prefix="vof-lab-") as name:
        initrd, status, console = (Path(name) / file for file in ("initrd", "status", "console"))
        initrd.write_bytes(_initrd(kernel, command, options))
        kind = "steady" if options.steady else accelerator(kernel)
        words = _machine(kernel, kind, initrd, KERNEL)
        words += ["-m", str(options.memory), "-smp", str(min(os.cpu_count() or 1, 4))]
        words += ["-virtfs", ROOT, "-device", "virtio-serial-pci", "-device", "virtio-rng-pci"]
        channels = {"out": 1, "err": 2, "status": status}
        for port in channels:
            words += ["-device", f"virtserialport,chardev={port},name={port}"]
        channels["console"] = 2 if options.console else console
        words += ["-serial", "chardev:console"]
        for text in options.qemu:
            words += shlex.split(text)
        said: list[str] = []
        for _ in range(BOOTS):
            try:
                _wait(words, channels, options.seconds)
            except subprocess.TimeoutExpired:
                print(f"lab: {options.seconds:g} seconds are up", file=sys.stderr)
                return TIMED_OUT
            said = status.read_text().split()
            if said:
                break
        if len(said) == 2:
            return int(said[1])
        why = console.read_text(errors="replace")[-3000:] if console.exists() else "see above"
        raise LabError(f"the machine did not come {'to an end' if said else 'up'}: {why}")
