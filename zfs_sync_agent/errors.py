"""Decides how a failure is told: one type per outcome, each with the parts of its message.

It never prints and never chooses an exit status by text: the type carries it.
"""

from check_zfs_sync.service import Problem

UNTOUCHED = "everything on both sides"

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED = 0, 1, 2, 3

# Worst first: a person must act; the command line or a file is wrong; the next run retries.
EXIT_RANK = (EXIT_REFUSED, EXIT_USAGE, EXIT_FAILED, EXIT_OK)


def worst_exit(codes: set[int]) -> int:
    """Return the exit status that outranks the others; 0 for none at all."""
    return next((code for code in EXIT_RANK if code in codes), EXIT_OK)


class SyncError(Exception):
    """Something that one sync resource or one target could not do.

    `what` says what was tried and on which node, `command` is pasteable and may be empty, `detail`
    is the exit status with the last words of stderr, `untouched` what was left as it was, `hint`
    what to do next.
    """

    exit_code = EXIT_FAILED
    result = "failed"

    def __init__(
        self, what: str, *, command: str = "", detail: str = "", untouched: str = "", hint: str = ""
    ) -> None:
        self.what = what
        self.command = command
        self.detail = detail
        self.untouched = untouched
        self.hint = hint
        super().__init__(self.reason)

    @property
    def reason(self) -> str:
        """Return the failure on one line, without advice: what the state file keeps."""
        return ": ".join(" ".join(part.split()) for part in (self.what, self.detail) if part)

    def block(self, who: str) -> str:
        """Return the readable block that cron mails for `who` (service, rid and target)."""
        rows = [f"{who}: {self.what}"]
        rows += [f"  command:   {self.command}"] if self.command else []
        rows += [f"  answer:    {line}" for line in self.detail.splitlines()]
        rows += [f"  untouched: {self.untouched}"] if self.untouched else []
        rows += [f"  next:      {self.hint}"] if self.hint else []
        return "\n".join(rows)


class CommandFailed(SyncError):
    """A command answered, and it answered that it failed."""


class NoAnswer(SyncError):
    """A node or a command did not answer: nothing is known, not even that a dataset is absent."""


class Stalled(NoAnswer):
    """A transfer moved no byte for stall_timeout."""


class Refused(SyncError):
    """The agent will not do it without a person's consent."""

    exit_code = EXIT_REFUSED
    result = "refused"


class StandbyFor(SyncError):
    """The other node is the source: nothing to do here, and nothing to tell anyone."""

    exit_code = EXIT_OK


class BrokenChain(SyncError):
    """Source and target hold no common snapshot where they should: only a full sync helps."""

    exit_code = EXIT_REFUSED
    result = "broken"


class Misconfigured(SyncError):
    """A service file asks for something that cannot be; the text says what to write instead."""

    exit_code = EXIT_USAGE


class UsageError(SyncError):
    """The command line or the service files are wrong."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: tuple[Problem | str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class Interrupted(BaseException):
    """A signal asked the run to end; BaseException, so that no handler of failures swallows it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signum)
