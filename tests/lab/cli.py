"""The command tests/lab/lab: a lab to play with by hand.

`lab up [NODE...]`, `lab exec NODE COMMAND...`, `lab down`. A process in the background holds the
lab; there is one such lab on a machine. Decides nothing about nodes that `Lab` does not.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import LabError
from .host import ENVIRONMENT, NODE_NAMESPACES, REPOSITORY, SYSTEM_PATH
from .process import eventually, tool
from .testlab import Lab

STATE = Path("/run/zfslab.json")
DEFAULT_NODES = ["osol1.opensvc.com", "osol2.opensvc.com"]
LAB = str(Path(__file__).with_name("lab"))


def pools_of(nodes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Give each node a pool of its own name; only the first one's is mounted."""
    kinds = ["source", *["target"] * len(nodes)]
    return {n: {f"{n.split('.')[0]}_z3_root": kind} for n, kind in zip(nodes, kinds, strict=False)}


@contextlib.contextmanager
def locked(mode: str) -> Iterator[bool]:
    """Try to lock the state file; False means that a lab is up."""
    with STATE.open(mode) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_up() -> bool:
    """Whether a process holds a lab."""
    if not STATE.exists():
        return False
    with locked("r") as free:
        return not free


def state() -> Any:
    """Return what the holder wrote: its pid, and the pid and name of each node."""
    if not is_up():
        raise LabError("no lab is up; start one with: lab up")
    return json.loads(STATE.read_text())


def hold(nodes: Sequence[str]) -> int:
    """Be the holder: keep the lab until a signal comes."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with locked("a") as free:
        if not free:
            raise LabError("a lab is up already; end it with: lab down")
        with Lab() as lab:
            started = lab.nodes(pools_of(nodes))
            entries = {node.name: {"pid": node.pid, "root": str(node.root)} for node in started}
            STATE.write_text(json.dumps({"pid": os.getpid(), "nodes": entries}))
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            # Whoever reads the output of `lab up` must see its end.
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
                os.dup2(nowhere.fileno(), sys.stderr.fileno())
            signal.sigwait(signals)
        STATE.unlink()
    return 0


def up(nodes: Sequence[str]) -> int:
    """Start the holder and tell what there is."""
    names = list(nodes) or DEFAULT_NODES
    holder = subprocess.Popen(
        [sys.executable, LAB, "hold", *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert holder.stdout
    if holder.stdout.readline() != "ready\n":
        return holder.wait() or 1
    for name, pools in pools_of(names).items():
        folder = state()["nodes"][name]["root"]
        sys.stdout.write(f"{name}: pool {' '.join(pools)}, files in {folder}\n")
    return 0


def execute(node: str, command: Sequence[str]) -> int:
    """Become a command in a node."""
    nodes = state()["nodes"]
    fitting = [entry for name, entry in nodes.items() if node in {name, name.split(".")[0]}]
    if not fitting:
        raise LabError(f"no node {node}; there are: {' '.join(nodes)}")
    own = Path(sys.executable).parent
    env = {
        **ENVIRONMENT,
        "PATH": f"/run/node/bin:{own}:{SYSTEM_PATH}",
        "PYTHONPATH": str(REPOSITORY),
        "TERM": os.environ.get("TERM", "dumb"),
    }
    flags = [f"--{kind}" for kind in NODE_NAMESPACES]
    enter = [tool("nsenter"), f"--target={fitting[0]['pid']}", *flags, "--", *command]
    os.execve(enter[0], enter, env)  # noqa: S606


def down() -> int:
    """End the holder and with it the lab."""
    os.kill(state()["pid"], signal.SIGTERM)
    eventually("the lab is down", lambda: not is_up(), 30)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="lab", description="test hosts with ZFS, by hand")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, words in (("up", "start a lab"), ("hold", "be a lab, in the foreground")):
        action = actions.add_parser(name, help=words)
        action.add_argument("nodes", nargs="*", metavar="NODE", help="full host names")
    action = actions.add_parser("exec", help="run a command in a node")
    action.add_argument("node")
    action.add_argument("command", nargs=argparse.REMAINDER)
    actions.add_parser("down", help="end the lab")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Do one action."""
    args = parse(argv)
    try:
        match args.action:
            case "up":
                return up(args.nodes)
            case "hold":
                return hold(args.nodes or DEFAULT_NODES)
            case "exec":
                return execute(args.node, args.command or ["/bin/bash"])
            case _:
                return down()
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
