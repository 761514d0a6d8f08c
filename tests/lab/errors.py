"""What the lab raises; it never hides a command's own words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class LabError(RuntimeError):
    """The lab could not do what it was asked for."""


class CommandError(LabError):
    """A command inside a node failed and the test wanted it to succeed."""

    def __init__(self, argv: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr
        super().__init__(
            f"{shlex.join(argv)}: exit status {returncode}\nstdout: {stdout}\nstderr: {stderr}"
        )
