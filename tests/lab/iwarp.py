# SPDX-License-Identifier: BSD-3-Clause
"""The module ``siw``, soft-iWARP, which Debian's kernels leave out: built from Debian's sources.

It is built against the headers of the lab's kernel and kept beside it; nothing is installed.
"""

import shutil
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.kernel import Kernel, backports, cache, once, run

COMPILER = "x86_64-linux-gnu-gcc-12"
"""Which the kernel was built with."""
DRIVER = "drivers/infiniband/sw/siw"
SETTINGS = ("CONFIG_RDMA_SIW=m", "CONFIG_DEBUG_INFO_BTF_MODULES=")
"""Types of its own for debuggers would need one more program."""


def siw(kernel: Kernel) -> Path:
    """Return the module, which is built by the first who asks. Raises LabError."""
    made = cache() / f"siw-{kernel.modules.name}.ko"
    once(made, "building soft-iWARP", lambda: _build(kernel.modules.name, made))
    return made


def _build(release: str, made: Path) -> None:
    for program, package in ((COMPILER, "gcc-12"), ("make", "make")):
        if not shutil.which(program):
            raise LabError(f"{program} is missing (Debian package {package})")
    work = cache() / "work"
    suite = backports(work)
    common = release.removesuffix("-amd64")
    headers = f"linux-headers-{release}"
    packages = headers, f"linux-headers-{common}-common", f"linux-kbuild-{common}"
    source = "linux-source-" + ".".join(release.split(".")[:2])
    run("apt-get", "-q", *suite, "download", *packages, cwd=work)
    [version] = {path.name.split("_")[1] for path in work.glob(f"{headers}_*.deb")}
    run("apt-get", "-q", *suite, "download", f"{source}={version}", cwd=work)
    for archive in work.glob("*.deb"):
        run("dpkg", "-x", archive, work)
    tree = work / "usr/src"
    run("tar", "-xf", tree / f"{source}.tar.xz", "-C", work, f"{source}/{DRIVER}")
    makefile = tree / headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src", str(tree)))
    folder = work / source / DRIVER
    run("make", "-C", tree / headers, f"M={folder}", *SETTINGS, "modules")
    (folder / "siw.ko").rename(made)
    shutil.rmtree(work)
