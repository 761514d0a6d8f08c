"""What is measured without another machine: the agent's own time and memory, and the check.

Decides how a run without ZFS looks: zfs and ssh are standin.py, in a folder that is removed
afterwards. The agent measures itself, so that its children do not count.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.host import REPOSITORY

from .measure import Result, Results, say
from .works import Work

CHECK_ROUNDS = 4  # times as many as of the others: a run takes a fraction of a second
SERVICE = """\
[sync#1]
type = zfs
src@{here} = tank/data
dst = backup/data
target = t1.example.com
ssh = {folder}/bin/ssh
zfs = {folder}/bin/zfs
"""
OURSELVES = """
import json, os, resource
from pathlib import Path
from zfs_sync_agent.cli import main
try:
    main()
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    found = {"cpu": usage.ru_utime + usage.ru_stime, "memory": int(peak) / 1024}
    Path(os.environ["FOUND"]).write_text(json.dumps(found))
"""


class Alone:
    """One folder with a service, the stand-ins, and what the agent makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "conf", "state"):
            (folder / name).mkdir()
        for name in ("zfs", "ssh"):
            file = folder / "bin" / name
            source = Path(__file__).with_name("standin.py").read_text()
            file.write_text(f"#!{Path(sys.executable).resolve()} -IS\n{source}")
            file.chmod(0o755)
        here = socket.gethostname()
        text = SERVICE.format(here=here, folder=folder)
        (folder / "conf" / "bench.conf").write_text(text)

    def python(self, code: str, *words: str, **env: str) -> None:
        """Run some Python; a status other than 0 is an error."""
        whole = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(REPOSITORY), **env}
        ran = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=whole,
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=900,
        )
        if ran.returncode or ran.stderr:
            raise LabError(f"exit {ran.returncode}: {ran.stdout}{ran.stderr}"[-400:])

    def options(self) -> Sequence[str]:
        """Return where the files are."""
        return ("--config-dir", f"{self.folder}/conf", "--state-dir", f"{self.folder}/state")

    def agent(self, datasets: int) -> dict[str, float]:
        """Run the agent once and return what it says of itself."""
        found = self.folder / "found"
        env = {"FOUND": str(found), "STANDIN": f"{self.folder}/zfs", "DATASETS": str(datasets)}
        self.python(OURSELVES, *self.options(), "syncupdate", **env)
        measured: dict[str, float] = json.loads(found.read_text())
        return measured

    def multiply(self, count: int, *, services: bool) -> None:
        """Make as many state files of the one that there is; each with its service, or none has."""
        service = self.folder / "conf" / "bench.conf"
        text = service.read_text()
        if not services:
            service.unlink()
        state = json.loads((self.folder / "state" / "bench_sync#1_zfs_state").read_text())
        for number in range(2, count + 1):
            name, data = f"bench{number}", f"/data{number}"
            if services:
                service.with_name(f"{name}.conf").write_text(text.replace("/data", data))
            state |= {"service": name, "src": f"tank{data}"}
            for target in state["targets"].values():
                target["dst"] = f"backup{data}"
            file = self.folder / "state" / f"{name}_sync#1_zfs_state"
            file.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")

    def check(self) -> dict[str, float]:
        """Time the check."""
        code = "from check_zfs_sync.plugin import main; main()"
        return self.timed(code, *self.options())

    def timed(self, code: str, *words: str) -> dict[str, float]:
        """Time some Python."""
        start = time.monotonic()
        self.python(code, *words)
        return {"wall": time.monotonic() - start}


def measure(work: Work, rounds: int) -> Results:
    """Do a work that needs no other machine."""
    with tempfile.TemporaryDirectory(prefix="zfs_sync-bench-") as folder:
        alone = Alone(Path(folder))
        if work.kind == "own":
            results = {"ours": Result()}
            alone.agent(work.size)
            for _ in range(rounds):
                results["ours"].runs.append(alone.agent(work.size))
        else:
            results = {"check": Result(), "import nagiosplugin": Result()}
            alone.agent(1)
            alone.multiply(work.size, services=work.kind == "services")
            alone.check()
            for _ in range(CHECK_ROUNDS * rounds):
                results["check"].runs.append(alone.check())
                bare = alone.timed("import nagiosplugin")
                results["import nagiosplugin"].runs.append(bare)
    for name, result in results.items():
        say(f"{work.name}: {name}: {result.runs[len(result.runs) // 2]}")
    return results
