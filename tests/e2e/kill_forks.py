"""Runs the project's programs in forks of a process that has imported them already.

Hundreds of cases run the agent and the check a few thousand times, and two thirds of such a run are
imports. The run that is killed is never one of these. Decides nothing about them: words go in, exit
status and output come out. As a script it is the server, inside a node; else the client.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from check_zfs_sync import plugin  # noqa: F401 - imported before the forks
from zfs_sync_agent import cli  # noqa: F401 - imported before the forks

LONGEST_SECONDS = 300
MODULES = {"zfs_sync_agent": "zfs_sync_agent.cli", "check_zfs_sync": "check_zfs_sync.plugin"}


class Server:
    """A server in one node; it ends with its standard input, or when the node is reset.

    `script` is run there with the words of `options`, and calls `serve`.
    """

    def __init__(self, node: Any, script: str = __file__, *options: str) -> None:
        place = f"PYTHONPATH={Path(__file__).resolve().parent.parent.parent}"
        self._running = node.popen(
            ["/usr/bin/env", place, sys.executable, str(Path(script).resolve()), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=1,
        )

    @property
    def pids(self) -> set[int]:
        """The processes that are no strays of a run."""
        return {self._running.pid, self._running.outside}

    def run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a program there."""
        request = [program, *args]
        self._running.stdin.write(json.dumps(request) + "\n")
        answers, _, _ = select.select([self._running.stdout], [], [], LONGEST_SECONDS)
        assert answers, f"{request} did not come to an end in {LONGEST_SECONDS} s"
        line = self._running.stdout.readline()
        assert line, f"the server that runs {request} has died"
        code, stdout, stderr = json.loads(line)
        return subprocess.CompletedProcess(request, code, stdout, stderr)

    def close(self) -> None:
        """End it."""
        with self._running as running:
            running.kill()


def run_here(program: str, args: Sequence[str]) -> None:
    """Be the program; never return."""
    sys.argv = [program, *args]
    code: object = 1
    try:
        importlib.import_module(MODULES[program]).main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def serve(first: Callable[[], None] = lambda: None) -> None:
    """Answer one line for each line; `first` is done in each fork before the program."""
    for line in sys.stdin:
        program, *args = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            pid = os.fork()
            if not pid:
                null = os.open(os.devnull, os.O_RDONLY)
                for given, wanted in ((null, 0), (out.fileno(), 1), (err.fileno(), 2)):
                    os.dup2(given, wanted)
                first()
                run_here(program, args)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            texts = [file.read() for file in (out, err) if not file.seek(0)]
        sys.stdout.write(json.dumps([code, *texts]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
