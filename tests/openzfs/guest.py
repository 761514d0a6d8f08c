"""A virtual machine whose kernel has OpenZFS: its command line, its image, its saved state.

Decides where the image is kept and how a guest starts: from a saved state within seconds, or by
booting, as after a power cut. Software emulation, so that it runs wherever the tests run. Knows
nothing of nodes and pools.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.process import eventually, tool

from . import client

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("OPENZFS_CACHE", "/var/cache/zfs_sync"))
SUITE = os.environ.get("OPENZFS_SUITE", "backports")
PAYLOAD = ("init.sh", "server.py")

BOOT_SECONDS = 180
MEMORY_MIB = 768

# What plain emulation of x86-64 lacks and OpenSSL and ZFS use; all that TCG knows costs more.
CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+aes,+pclmulqdq"
# Emulated code is translated once for each address that it is seen at: without random addresses
# a command takes a third of the time.
KERNEL_LINE = (
    "root=/dev/vda rw console=ttyS0 init=/sbin/openzfs-init panic=-1 quiet mitigations=off"
    " nokaslr norandmaps init_on_alloc=0 audit=0 lsm=capability transparent_hugepage=never"
)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def image() -> Path:
    """Return the folder of the image that the build's own text makes."""
    return CACHE / f"openzfs-{SUITE}-{_digest((HERE / 'build.sh').read_text())}"


def state() -> Path:
    """Return the folder of the saved state of a guest that has booted from the image."""
    words = " ".join((CPU, KERNEL_LINE, str(MEMORY_MIB), platform.machine()))
    key = _digest(words, *((HERE / name).read_text() for name in PAYLOAD))
    return image() / f"state-{key}"


def command(folder: Path, port: int, *options: str) -> list[str]:
    """Return qemu's words; `folder` has the guest's disk, its payload and its console's log."""
    base = image()
    forward = f"hostfwd=tcp:127.0.0.1:{port}-:{client.PORT}"
    return [
        tool("qemu-system-x86_64"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU),
        *("-smp", "1", "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config"),
        *("-display", "none", "-serial", f"file:{folder}/console", "-no-reboot"),
        *("-kernel", f"{base}/vmlinuz", "-initrd", f"{base}/initrd.img", "-append", KERNEL_LINE),
        *("-drive", f"file={folder}/disk.qcow2,if=virtio,format=qcow2,cache=unsafe"),
        *("-drive", f"file={state()}/payload,if=virtio,format=raw,readonly=on"),
        *("-netdev", f"user,id=host,restrict=on,{forward}"),
        *("-device", "virtio-net-pci,netdev=host,mac=52:54:00:00:00:01"),
        *("-device", "virtio-rng-pci"),
        *options,
    ]


def restore_options() -> list[str]:
    """Return the words that let a guest go on where the saved one stood."""
    return ["-incoming", f"exec:cat {state()}/memory"]


def make_disk(file: Path, *, saved: bool) -> None:
    """Make a disk that holds what differs from the image, or from the saved guest's disk."""
    base, kind = (state() / "disk.qcow2", "qcow2") if saved else (image() / "root.img", "raw")
    words = ["create", "-q", "-f", "qcow2", "-b", str(base), "-F", kind, str(file)]
    subprocess.run([tool("qemu-img"), *words], check=True)


def wake_line(ahead: int) -> bytes:
    """Return the frame that gives a guest the time, and randomness that no other guest has."""
    data = f"{time.time() + ahead:.6f} {secrets.token_hex(64)}".encode()
    return client.HEAD.pack(b"T", len(data)) + data


def prepare() -> str:
    """Build the image and save a guest's state where they are missing; return the ZFS version."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in (*CACHE.glob("*.new-*"), *CACHE.glob("*/new-*")):
            shutil.rmtree(left)  # by a build that was killed; its mounts went with it
        if not image().exists():
            _build_image()
        if not state().exists():
            _save_state()
    return (image() / "version").read_text().strip()


def _build_image() -> None:
    sys.stderr.write(f"openzfs: building {image()}, about 6 minutes\n")
    with tempfile.TemporaryFile() as log:
        build = [tool("unshare"), "--mount", "bash", str(HERE / "build.sh"), str(image()), SUITE]
        if subprocess.run(build, stdout=log, stderr=log, check=False).returncode:
            log.seek(0)
            raise LabError(f"the image was not built:\n{log.read().decode()[-6000:]}")


def _save_state() -> None:
    """Boot a guest, and keep its memory and its disk as they are once it answers."""
    work = Path(tempfile.mkdtemp(prefix="new-", dir=image()))
    try:
        # The words of a guest name the state's folder: it has to be there before it is whole.
        place = state()
        with tarfile.open(work / "payload", "w") as payload:
            for name in PAYLOAD:
                payload.add(HERE / name, f"openzfs/{name}")
        make_disk(work / "disk.qcow2", saved=False)
        port = _free_port()
        monitor = work / "monitor"
        words = command(work, port, "-qmp", f"unix:{monitor},server=on,wait=off")
        words = [word.replace(str(place), str(work)) for word in words]
        guest = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            eventually(
                f"the guest answers; see {work}/console",
                lambda: guest.poll() is None and answers(port),
                BOOT_SECONDS,
            )
            _migrate(monitor, work / "memory")
        finally:
            guest.kill()
            guest.wait()
        monitor.unlink(missing_ok=True)  # qemu has removed it, if it was quick
        work.chmod(0o755)
        # The disk's own file names the image by its full path, so it may be moved.
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def answers(port: int) -> bool:
    """Tell whether the guest runs commands."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
            link.sendall(client.HEAD.pack(b"N", 4) + b"true")
            return link.recv(1) == b"X"
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _migrate(monitor: Path, file: Path) -> None:
    """Write a guest's memory to a file, by qemu's monitor."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(monitor))
        stream = link.makefile("rw")

        def ask(name: str, **arguments: str) -> dict[str, str]:
            stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
            stream.flush()
            while True:
                said = json.loads(stream.readline())
                if "error" in said:
                    raise LabError(f"qemu: {said['error']}")
                if "return" in said:
                    result: dict[str, str] = said["return"]
                    return result

        stream.readline()
        ask("qmp_capabilities")
        ask("migrate", uri=f"exec:cat >{file}")
        eventually(
            "the guest's memory is saved",
            lambda: ask("query-migrate").get("status") == "completed",
            60,
        )
        ask("quit")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"openzfs: zfs {prepare()} in {image()}\n")
    except LabError as error:
        sys.exit(f"openzfs: {error}")
