"""Counts the processes that ended on the measured machine, by the kernel's own accounting.

    account.py on | off

`off` prints one line of JSON: how many processes there were, and how many of them were zfs. That
costs a record a process, where tracing would make an emulated machine ten times slower. Threads of
the kernel, which have no memory of their own, do not count. See acct(2) and acct(5).
"""

import ctypes
import json
import os
import struct
import sys

FILE = "/run/bench.acct"
RECORD = struct.Struct("36xHxxxxxxxxxx16s")  # ac_mem and ac_comm of struct acct_v3


def account(path: bytes | None) -> None:
    """Have the kernel write to a file, or no more."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.acct(path):
        raise OSError(ctypes.get_errno(), "no accounting of processes")


if sys.argv[1] == "on":
    with open(FILE, "wb"):  # noqa: PTH123 - imports are time
        account(FILE.encode())
else:
    account(None)
    with open(FILE, "rb") as file:  # noqa: PTH123
        names = [name.rstrip(b"\0") for memory, name in RECORD.iter_unpack(file.read()) if memory]
    os.unlink(FILE)  # noqa: PTH108
    print(json.dumps({"processes": len(names), "zfs": names.count(b"zfs")}))  # noqa: T201
