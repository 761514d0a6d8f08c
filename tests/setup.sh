#!/bin/bash
# Sets up what `make lint`, `make test` and `make demo` need: Debian packages, only those whose
# programs are missing, and a virtual environment in .venv. Run by make, with the programs and
# packages as arguments, PROGRAM:PACKAGE. Does nothing, quickly, where all is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# A python that is too old, or that cannot make a virtual environment, is no python.
find_python() {
    local python
    for python in ${PYTHON:+"$PYTHON"} /usr/bin/python3 python3; do
        if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))'; then
            echo "$python"
            return
        fi
    done 2>/dev/null
    return 1
}

# Daemons of new packages are not started, since the tests start their own; nothing is removed.
install() {
    case " $* " in
        *" zfs-fuse "*)
            if command -v zfs >/dev/null; then
                echo "setup: zfs-fuse would take the place of this machine's ZFS: $(command -v zfs);" >&2
                echo "setup: run this on a machine, or in a container, without ZFS" >&2
                return 1
            fi
            ;;
    esac
    echo "setup: installing $*"
    if ! command -v apt-get >/dev/null; then
        echo "setup: this is no Debian; install what has these programs, then try again" >&2
        return 1
    fi
    as_root bash -euo pipefail -s "$@" <<'ROOT'
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update || echo "setup: apt-get update failed; trying what is known" >&2
apt-get -q -y --no-install-recommends --no-remove install "$@" </dev/null
ROOT
    case " $* " in
        *" openssh-server "* | *" zfs-fuse "*)
            echo "setup: ssh and zfs-fuse are installed, not started; to keep them from starting at"
            echo "setup: the next boot: systemctl disable ssh zfs-fuse"
            ;;
    esac
}

packages=()
for pair in "$@"; do
    if ! command -v "${pair%%:*}" >/dev/null; then packages+=("${pair##*:}"); fi
done
if ! python=$(find_python); then packages+=(python3 python3-venv); fi
if [ "${#packages[@]}" -gt 0 ]; then
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    install "${packages[@]}"
fi
python=$(find_python) || { echo "setup: no python3 >= 3.10 with venv" >&2 && exit 1; }

stamp=.venv/stamp
wanted="$("$python" --version) $(sha256sum <tests/requirements.txt)"
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    echo "setup: making the virtual environment .venv"
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --requirement tests/requirements.txt
    echo "$wanted" >$stamp
fi
