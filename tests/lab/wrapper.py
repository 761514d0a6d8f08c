"""The program that stands in front of a wrapped program in a node's PATH.

It writes one line per exec (time, pid, parent's pid, arguments) and becomes the real program. Only
the one exec that an armed fault is meant for stays as the parent of the real program. Runs as
a script of its own, copied into the node: it imports nothing of the lab, and what a
bare exec does not need is imported late, since it runs in front of every single command.
"""

import os
import sys
import time


def number_of_this_match(fault: str) -> int:
    """Count atomically over all processes: whoever creates file n is the n-th."""
    number = 1
    while True:
        try:
            os.close(os.open(f"{fault}.{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            number += 1
        else:
            return number


def run_with_fault(fault: dict[str, str], path: str, real: str) -> None:
    """Run the test's shell command before, during, after or instead of the real program."""
    import subprocess  # noqa: PLC0415

    env = {**os.environ, "FAULT_PARENT": str(os.getppid())}

    def strike() -> int:
        os.close(os.open(f"{path}.fired", os.O_CREAT | os.O_WRONLY))
        # `"$0" "$@"` is the program itself, for what stands between it and its reader.
        return subprocess.call(["/bin/sh", "-c", fault["do"], real, *sys.argv[1:]], env=env)

    if fault["when"] == "before":
        strike()
        return
    if fault["when"] == "instead":
        sys.exit(strike())
    program = subprocess.Popen([real, *sys.argv[1:]])
    env["FAULT_CHILD"] = str(program.pid)
    if fault["when"] == "during":
        strike()
    status = program.wait()
    if fault["when"] == "after":
        strike()
    sys.exit(status if status >= 0 else 128 - status)


def main(real: str, calls: str, fault: str) -> None:
    """Log this exec, then be the real program."""
    line = repr((time.time(), os.getpid(), os.getppid(), sys.argv[1:])) + "\n"
    log = os.open(calls, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(log, line.encode(errors="surrogateescape"))
    os.close(log)
    if os.path.exists(fault):  # noqa: PTH110
        import json  # noqa: PLC0415

        with open(fault) as file:  # noqa: PTH123
            armed = json.load(file)
        wanted = all(word in sys.argv[1:] for word in armed["match"])
        if wanted and number_of_this_match(fault) == armed["nth"]:
            run_with_fault(armed, fault, real)
    os.execv(real, [real, *sys.argv[1:]])  # noqa: S606
