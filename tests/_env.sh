# SPDX-License-Identifier: BSD-3-Clause
# Sourced by tests/run, tests/bench/compare and .ci/run: makes .venv and what the tests need.
# After `environment`, .venv/bin has the project (editable) and its test tools.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Programs of other projects that some tests run, each with its Debian package.
PROGRAMS=(
    nbdkit:nbdkit fio:fio systemd-analyze:systemd strace:strace groff:groff-base man:man-db
    qemu-storage-daemon:qemu-system-common dpdk-testpmd:dpdk-dev cc:gcc
    /usr/include/dlfcn.h:libc6-dev
)
# What RDMA needs, and what tests/lab does; a path stands for what is no program, or not known by its name.
RDMA=(
    ip:iproute2 /usr/share/doc/rdma-core:rdma-core ibv_devices:ibverbs-utils rping:rdmacm-utils
    /usr/share/doc/python3-pyverbs:python3-pyverbs
)
LAB=(
    qemu-system-x86_64:qemu-system-x86 /usr/share/doc/busybox-static:busybox-static zstd:zstd
    "${RDMA[@]}"
)

say() { printf 'setup: %s\n' "$*" >&2; }

# debian PACKAGE…: install, where we may; else fail.
debian() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        apt=(sudo -n "${apt[@]}")
    fi
    say "apt-get install $*"
    "${apt[@]}" install --no-install-recommends "$@" >/dev/null 2>&1 </dev/null ||
        { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "$@"; } >&2 </dev/null
}

there() { command -v "$1" >/dev/null || [ -e "$1" ]; }

# programs ROW…: install those that are missing; name those that stay so, and fail.
programs() {
    local row wanted=() missing=0
    for row; do
        there "${row%%:*}" || wanted+=("${row##*:}")
    done
    [ ${#wanted[@]} = 0 ] || debian "${wanted[@]}" || true
    for row; do
        there "${row%%:*}" && continue
        say "${row%%:*} is missing (Debian package ${row##*:}); what needs it cannot run"
        missing=1
    done
    return $missing
}

# fit PYTHON: new enough, and able to make virtual environments.
fit() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Print a fit Python: $PYTHON, else the distribution's (its modules fit it), else any.
find_python() {
    local name
    for name in ${PYTHON:-/usr/bin/python3 python3}; do
        fit "$name" && { echo "$name"; return; }
    done
    debian python3-venv >&2 || true
    for name in ${PYTHON:-/usr/bin/python3 python3}; do
        fit "$name" && { echo "$name"; return; }
    done
    say "no Python 3.11 or newer with venv (Debian package python3-venv)"
    return 1
}

# Print the requirements of the group `dev`, one a line; an old pip knows no groups.
requirements() {
    .venv/bin/python - <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    groups = tomllib.load(file)["dependency-groups"]
rows = list(groups["dev"])
while rows:
    row = rows.pop()
    if isinstance(row, str):
        print(row)
    else:
        rows += groups[row["include-group"]]
PYTHON
}

# Whether .venv has this very checkout, installed for the present pyproject.toml.
current() {
    cmp -s pyproject.toml .venv/pyproject.toml &&
        [ "$(.venv/bin/python -P -c 'import vof; print(vof.__file__)' 2>/dev/null)" = \
            "$(pwd -P)/vof/__init__.py" ]
}

environment() {
    local name wanted
    current && return
    if ! .venv/bin/python -c '' 2>/dev/null; then
        name=$(find_python)
        say "making .venv with $name"
        "$name" -m venv --clear .venv
    fi
    say "installing the project and its test tools into .venv"
    mapfile -t wanted < <(requirements)
    .venv/bin/python -m pip install -q -e . "${wanted[@]}" </dev/null
    cp pyproject.toml .venv/pyproject.toml
}
