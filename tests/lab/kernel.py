# SPDX-License-Identifier: BSD-3-Clause
"""A Linux kernel with soft RDMA, from Debian's backports: fetched, never installed.

Everything is in one cache folder: ``$VOF_LAB``, else ``vof-lab`` in the user's cache.
"""

import fcntl
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.lab.errors import LabError

SUITE = "bookworm-backports"
META = "linux-image-amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = ("depmod", "modprobe", "insmod", "rmmod", "lsmod", "modinfo")
ZSTD = b"\x28\xb5\x2f\xfd"


class Kernel(NamedTuple):
    """A kernel that can be booted.

    Attributes:
        image: bare ELF, which QEMU starts by PVH: the slow decompressor is passed over.
        modules: the folder of its modules, with ``modules.dep``.
        tools: folder of modprobe and its relatives.
    """

    image: Path
    modules: Path
    tools: Path


def cache() -> Path:
    """Return the folder where the lab keeps what it fetched."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vof-lab"
    return Path(os.environ.get("VOF_LAB") or default)


def find() -> Kernel | None:
    """Return the kernel of the cache, or None: it has to be fetched."""
    top = cache() / "ready"
    found = sorted(top.glob("modules/*/modules.dep"))
    return Kernel(top / "vmlinux", found[-1].parent, top / "bin") if found else None


def get() -> Kernel:
    """Return the kernel, which is fetched by the first who asks. Raises LabError."""
    once(cache() / "ready", "fetching a kernel from Debian", lambda: _fetch(cache()))
    kernel = find()
    assert kernel
    return kernel


def once(made: Path, how: str, make: Callable[[], None]) -> None:
    """Have the first who asks make what is missing in the cache. Raises LabError."""
    if made.exists():
        return
    made.parent.mkdir(parents=True, exist_ok=True)
    with (made.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return
        print(f"lab: {how}, once", file=os.sys.stderr)
        try:
            make()
        except subprocess.CalledProcessError as error:
            words = " ".join(map(str, error.cmd[:2]))
            raise LabError(f"{words} failed: {error.stderr.strip()[-500:]}") from None


def run(*words: str | Path, **options) -> str:
    """Run a program; return what it says. Raises subprocess.CalledProcessError."""
    return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout


def mirror() -> str:
    """Return where this machine has Debian's packages from. Raises LabError."""
    if given := os.environ.get("VOF_LAB_MIRROR"):
        return given
    if not shutil.which("apt-get"):
        raise LabError("the lab's kernel is a Debian package, and there is no apt-get here")
    wanted = "$(REPO_URI) $(ORIGIN) $(LABEL)", "Identifier: Packages"
    for line in run("apt-get", "indextargets", "--format", *wanted).splitlines():
        uri, *whose = line.split()
        if whose == ["Debian", "Debian"]:
            return uri
    raise LabError("no Debian mirror in this machine's apt sources: set VOF_LAB_MIRROR to one")


def backports(work: Path) -> list[str]:
    """Return options of apt's programs that let them see the suite; their state is in ``work``."""
    shutil.rmtree(work, ignore_errors=True)
    for name in ("apt/lists/partial", "apt/cache/archives/partial"):
        (work / name).mkdir(parents=True)
    sources = work / "apt/sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main\n")
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": work / "apt/lists",
        "Dir::Cache": work / "apt/cache",
        "APT::Sandbox::User": "",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    run("apt-get", "-q", *words, "update")
    return words


def _fetch(top: Path) -> None:
    """Fetch and unpack; what is complete appears as ``ready``, at once."""
    work = top / "work"
    suite = backports(work)
    (work / "new/bin").mkdir(parents=True)
    depends = run("apt-cache", *suite, "depends", META).split()
    package = next(word for word in depends[1:] if word.startswith("linux-image-"))
    run("apt-get", "-q", *suite, "download", package, cwd=work)
    run("apt-get", "-q", "download", "kmod", cwd=work)
    root = work / "root"
    for archive in work.glob("*.deb"):
        run("dpkg", "-x", archive, root)
    new = work / "new"
    (root / "lib/modules").rename(new / "modules")
    (root / "bin/kmod").rename(new / "bin/kmod")
    for tool in TOOLS:
        (new / "bin" / tool).symlink_to("kmod")
    [modules] = (new / "modules").iterdir()
    (root / "lib").rename(root / "other")
    (root / "lib").mkdir()
    (root / "lib/modules").symlink_to(new / "modules")
    run(new / "bin/depmod", "-b", root, modules.name)
    [packed] = root.glob("boot/vmlinuz-*")
    (new / "vmlinux").write_bytes(unpack(packed.read_bytes()))
    new.rename(top / "ready")
    shutil.rmtree(work)


def unpack(image: bytes) -> bytes:
    """Return the ELF inside a bzImage. Raises LabError."""
    at = image.find(ZSTD)
    while at >= 0:
        done = subprocess.run(["zstd", "-dc"], input=image[at:], capture_output=True)
        if done.stdout.startswith(b"\x7fELF"):
            return done.stdout
        at = image.find(ZSTD, at + 1)
    raise LabError("the kernel package has an image that the lab cannot unpack")


def module_files(kernel: Kernel, names: list[str]) -> list[tuple[str, bytes]]:
    """Return modules and what they need, each after what it needs: file names and contents.

    Raises:
        LabError: the kernel has no such module.
    """
    needs = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    paths = {_name(path): path for path in needs}
    builtin = {_name(line) for line in (kernel.modules / "modules.builtin").read_text().split()}
    order: dict[str, None] = {}
    for name in names:
        if name in builtin:
            continue
        if name not in paths:
            raise LabError(f"the lab's kernel has no module {name!r}")
        order |= dict.fromkeys([*reversed(needs[paths[name]]), paths[name]])
    return [(f"{_name(path)}.ko", _contents(kernel.modules / path)) for path in order]


def _name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def _contents(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
