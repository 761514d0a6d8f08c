"""Who is compared: the bare commands, the bare pipe, the agent, and other programs.

Decides each one's set-up and command, as shell scripts that find in their environment SRC and DST
(a dataset tree on either side), POOL (that of DST), TREE (a name for the pair), TARGETS and T (the
first of them). Of a program's documented options those are taken that make it fastest at this work,
except where its own manual advises against one. None is told to compress or to buffer: all use the
same ssh, as it comes.

zrepl and the like are in neither Debian 12 nor PyPI, and so not here.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from tests.lab.host import REPOSITORY

TOOLS = "/opt/bench"  # where all is unpacked on the measured machines
KEY = "/root/.ssh/id_ed25519"
NEW = "zfs snapshot -r $SRC@bench_$(date +%s%N)"  # for those that only send what is there


@dataclass(frozen=True)
class Contender:
    """One way to replicate a tree.

    `run` is what is timed; `first` comes once before, `before` and `after` around each run. `many`:
    it serves several targets in one run. `pip` is what PyPI has it as. `parts` is a run that tells
    where its time goes.
    """

    name: str
    run: str
    first: str = ""
    before: str = ""
    after: str = ""
    many: bool = False
    below: str = ""  # where in the target's pool it puts a {tree}
    pip: str = ""
    deb: str = ""
    parts: str = ""


def _python(contender: str) -> str:
    return f"export PYTHONPATH={TOOLS}/{contender}; exec python3"


SEQUENCE = Contender(
    "sequence",
    first="""
        zfs snapshot -r $SRC@tosend
        for t in $TARGETS; do
            zfs send -R $SRC@tosend | ssh $t zfs receive -dF $POOL
            ssh $t zfs rename -r $DST@tosend $DST@sent
        done
        zfs rename -r $SRC@tosend $SRC@sent""",
    run="""
        set -e
        zfs snapshot -r $SRC@tosend
        for t in $TARGETS; do
            zfs send -R -i $SRC@sent $SRC@tosend | ssh $t zfs receive -dF $POOL
            ssh $t zfs destroy -r $DST@sent
            ssh $t zfs rename -r $DST@tosend $DST@sent
        done
        zfs destroy -r $SRC@sent
        zfs rename -r $SRC@tosend $SRC@sent
        date >/run/$TREE.state
        for t in $TARGETS; do scp -q /run/$TREE.state $t:/run/$TREE.state; done""",
    many=True,
)


def _pipe(name: str, mark: str) -> Contender:
    snapshot = f"zfs snapshot -r {mark} $SRC"
    return Contender(
        name,
        first=f"""
            {snapshot}@a
            for t in $TARGETS; do zfs send -R $SRC@a | ssh $t zfs receive -d $POOL; done""",
        before=f"{snapshot}@b",
        run="""
            for t in $TARGETS; do zfs send -R -i $SRC@a $SRC@b | ssh $t zfs receive -d $POOL & done
            wait""",
        after="""
            for t in $TARGETS; do
                ssh $t "zfs destroy -r $DST@a && zfs rename -r $DST@b $DST@a"
            done
            zfs destroy -r $SRC@a && zfs rename -r $SRC@b $SRC@a""",
        many=True,
    )


PIPE = _pipe("pipe", "")
# What a property on each snapshot, by which the agent tells its own from others', costs a receive.
MARKED = _pipe("pipe-marked", "-o zfs_sync:rid=bench/sync#1")

ARGUMENTS = "--config-dir /run/conf/$TREE syncupdate"
AGENT = f"{_python('ours')} -m zfs_sync_agent {ARGUMENTS}"


def _agent(name: str, *keys: str, pip: str = "") -> Contender:
    """Return the agent with keys besides those that it must have."""
    lines = ("[sync#1]", "type = zfs", *keys)
    return Contender(
        name,
        first=f"""
            mkdir -p /run/conf/$TREE /var/lib/zfs_sync
            printf '%s\\n' {shlex.join(lines)} "src@$(hostname) = $SRC" "dst = $DST" \\
                "target = $TARGETS" >/run/conf/$TREE/$TREE.conf
            {AGENT}""",
        run=AGENT,
        many=True,
        pip=pip,
        parts=f"{_python('ours')} {TOOLS}/timeline.py {ARGUMENTS}",
    )


OURS = _agent("ours", pip="plumbum nagiosplugin")
# What costs as much as what changed, where zfs tells what was written (OpenZFS).
CHANGED = _agent("ours-changed", "skip_unchanged = True", "send_changed = True")

SYNCOID = Contender(
    "syncoid",
    run="exec syncoid --quiet --recursive --compress=none --no-stream --no-resume"
    " --no-privilege-elevation $SRC root@$T:$DST",
    deb="sanoid libcapture-tiny-perl libconfig-inifiles-perl",
)

# Its manual recommends a ControlMaster in an ssh configuration.
BACKUP = (
    f"{_python('zfs-autobackup')} -m zfs_autobackup.ZfsAutobackup --ssh-target $T"
    " --ssh-config /run/ssh_config --no-progress --no-holds --no-guid-check --strip-path 1"
    " --keep-source 2 --keep-target 2 $TREE $POOL"
)
AUTOBACKUP = Contender(
    "zfs-autobackup",
    first=f"""
        zfs set autobackup:$TREE=true $SRC
        printf '%s\\n' 'ControlMaster auto' 'ControlPath /run/%C' 'ControlPersist 60' \\
            >/run/ssh_config
        {BACKUP}""",
    run=BACKUP,
    pip="zfs-autobackup==3.3",
)

BZFS = Contender(
    "bzfs",
    run=f"{NEW} && {_python('bzfs')} -m bzfs_main.bzfs --quiet --recursive --no-stream"
    " --no-resume-recv --no-estimate-send-size --no-privilege-elevation --log-dir /run/bzfs-logs"
    " --compression-program=- --mbuffer-program=- --pv-program=- --ps-program=-"
    " $SRC root@$T:$DST",
    pip="bzfs==1.25.0",
)

# It destroys what it finds in its place on the target and not in SRC: each tree has another place.
REPLICATE = Contender(
    "zfs-replicate",
    run=f"{NEW} && {_python('zfs-replicate')} -c"
    " 'from zfs.replicate.cli.main import main; main()'"
    f" --login root -i {KEY} --recursive --compression off --no-raw $T $POOL/$TREE $SRC",
    below="{tree}/tank/",
    pip="zfs-replicate==4.1.0",
)

PYZNAP = Contender(
    "pyznap",
    run=f": >/run/pyznap.conf; {NEW} && {_python('pyznap')} -c"
    " 'from pyznap.main import main; main()' --config /run/pyznap.conf send"
    f" -s $SRC -d ssh:22:root@$T:$DST -i {KEY} -c none --dest-auto-create",
    pip="pyznap==1.6.0 setuptools==80.9.0",  # it imports pkg_resources
)

# What one connection costs, for the round trips that are not its handshake's.
CONNECTION = Contender("ssh", first=":", run="exec ssh $T true")

PEERS = (SYNCOID, AUTOBACKUP, BZFS, REPLICATE, PYZNAP)
SCRIPTS = ("probe.py", "account.py", "timeline.py")
EVERYONE = (SEQUENCE, PIPE, MARKED, OURS, CHANGED, *PEERS)


def fetch(folder: Path) -> dict[str, str]:
    """Put every program into a folder, once; return {contender: version}."""
    done = folder / "done"
    wanted = "\n".join(f"{one.deb} {one.pip}" for one in EVERYONE)
    if not done.exists() or done.read_text() != wanted:
        _fetch_debs(folder)
        for one in EVERYONE:
            if one.pip:
                _pip(folder / one.name, *one.pip.split())
        done.write_text(wanted)
    return {one.name: _version(folder, one) for one in (OURS, *PEERS)}


def files(folder: Path) -> dict[str, Path]:
    """Return what the measured machines need: {path there: path here}."""
    parts = {one.name: folder / one.name for one in EVERYONE if one.pip}
    parts |= {name: folder / "debs" / name for name in ("usr",)}
    own = {f"ours/{name}": REPOSITORY / name for name in ("check_zfs_sync", "zfs_sync_agent")}
    here = {name: Path(__file__).with_name(name) for name in SCRIPTS}
    return {f"{TOOLS}/{name}": path for name, path in {**parts, **own, **here}.items()}


def _pip(target: Path, *requirements: str) -> None:
    options = ("-qq", "--disable-pip-version-check", "--upgrade", "--target", str(target))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *requirements], check=True)


def _fetch_debs(folder: Path) -> None:
    place = folder / "debs"
    place.mkdir(parents=True, exist_ok=True)
    names = [name for one in PEERS for name in one.deb.split()]
    subprocess.run(["apt-get", "-qq", "download", *names], check=True, cwd=place)
    for deb in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(place)], check=True)


def _version(folder: Path, one: Contender) -> str:
    if one is OURS:
        said = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
            check=False,
            capture_output=True,
            text=True,
        )
        return said.stdout.strip() or "unknown"
    if one.deb:
        (deb,) = (folder / "debs").glob(f"{one.deb.split()[0]}_*.deb")
        return f"{deb.name.split('_')[1]} (Debian)"
    wanted = one.pip.partition("==")[0]
    found = distributions(path=[str(folder / one.name)])
    versions = {each.name.replace("_", "-"): each.version for each in found}
    return versions[wanted]
