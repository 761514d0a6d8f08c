"""The service file that `init` composes is a valid one, or it is told what is to be written."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from plumbum import local

from check_zfs_sync.service import KEYS, load_service
from zfs_sync_agent import cli, init
from zfs_sync_agent.init import Wish, compose

PAIR = {"nodes": "osol1 osol2", "src": "tank/data", "dst": "backup/data"}
SSH = '#!/bin/sh\nfor last; do :; done\necho Welcome\nexec sh -c "$last"\n'
# By it every pool is there, and every dataset but those of backup; those of standby are replicas.
ZFS = r"""#!/bin/sh
case "$*" in
    get*standby/*) printf 'zfs_sync:replica\tosol2/z3/sync#1\tlocal\n';;
    *backup/*) echo "cannot open 'backup/data': dataset does not exist" >&2; exit 1;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder for service files; ssh to any node ends here, where zfs is a stub."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("ssh", SSH), ("zfs", ZFS)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setattr(cli, "SYSLOG", "/nowhere")
    environment = dict(local.env.items())
    local.env["PATH"] = f"{tools}:{os.defpath}"
    yield tmp_path / "etc"
    local.env.clear()
    local.env.update(environment)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


def call(folder: Path, *words: str) -> int:
    """Run init on osol1; return its exit status."""
    folders = ("--config-dir", str(folder), "--state-dir", str(folder.parent / "state"))
    args = cli.build_parser().parse_intermixed_args(["--nodename", "osol1", *folders, *words])
    return cli.run(args)


def words(**values: str) -> list[str]:
    return ["init", *(f"{key}={value}" for key, value in values.items())]


def settings(text: str) -> list[str]:
    """Return the lines of a service file that are no comments, without type and target."""
    kept = [line for line in text.splitlines() if line and not line.startswith(";")]
    return [line for line in kept if line not in ("type = zfs", "target = nodes")]


# --- the text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        (
            {"nodes": "osol1 osol2", "src": "tank/data"},
            ["[DEFAULT]", "nodes = osol1 osol2", "[sync#1]", "src = tank/data"],
        ),
        (
            PAIR,
            [
                *("[DEFAULT]", "nodes = osol1 osol2", "[sync#1]"),
                *("src@osol1 = tank/data", "src@osol2 = backup/data"),
                *("dst@osol1 = backup/data", "dst@osol2 = tank/data"),
            ],
        ),
        (
            PAIR | {"nodes": "osol1.a.org, osol2.a.org, osol3.a.org"},
            [
                *("[DEFAULT]", "nodes = osol1.a.org, osol2.a.org, osol3.a.org", "[sync#1]"),
                *("src@osol1.a.org = tank/data", "dst@osol1.a.org = backup/data"),
            ],
        ),
        (
            {"target": "osol2", "src": "tank/data"},
            ["[sync#1]", "src@osol1 = tank/data", "target = osol2"],
        ),
        (
            {"target": "local", "src": "tank/data", "dst": "backup/data"},
            ["[sync#1]", "src@osol1 = tank/data", "dst@osol1 = backup/data", "target = local"],
        ),
        (
            {"src@osol1": "tank/data", "src[osol2]": "backup/data", "dst": "tank/copy"},
            ["[sync#1]", "src@osol1 = tank/data", "src[osol2] = backup/data", "dst = tank/copy"],
        ),
    ],
    ids=["one name", "a pair", "three nodes", "a named target", "a local one", "as it is said"],
)
def test_each_node_that_can_send_has_a_src(
    tmp_path: Path, values: dict[str, str], lines: list[str]
) -> None:
    text = compose(Wish("z3", "sync#1", values), "osol1")
    assert settings(text) == lines
    (tmp_path / "z3.conf").write_text(text)
    for node in ("osol1", "osol2"):
        load_service(str(tmp_path / "z3.conf"), nodename=node)


def test_a_pair_can_change_its_roles(tmp_path: Path) -> None:
    (tmp_path / "z3.conf").write_text(compose(Wish("z3", "sync#1", PAIR), "osol2"))
    found = {}
    for node in ("osol1", "osol2"):
        (one,) = load_service(str(tmp_path / "z3.conf"), nodename=node).resources
        found[node] = (one.src, one.dst, [target.node for target in one.targets])
    assert found == {
        "osol1": ("backup/data", "tank/data", ["osol2"]),
        "osol2": ("tank/data", "backup/data", ["osol1"]),
    }


def test_what_else_there_is_can_be_uncommented(tmp_path: Path) -> None:
    plain = compose(Wish("z3", "sync#1", PAIR), "osol1")
    above, _, others = plain.partition("; What else there is")
    lines = [line.removeprefix(";") for line in others.splitlines()[1:]]
    files = {"plain": plain, "whole": "\n".join([above.rstrip(), *lines, ""])}
    found = {}
    for name, text in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "z3.conf").write_text(text)
        service = load_service(str(tmp_path / name / "z3.conf"), nodename="osol1")
        found[name] = [one._replace(file="", line=0) for one in service.resources]
    assert found["plain"] == found["whole"]
    assert {line.partition(" =")[0] for line in lines} | {
        *("type", "src", "dst", "target", "nodes", "drpnodes", "metrics_file")
    } == set(KEYS)


@pytest.mark.parametrize(
    ("delay", "times"),
    [
        *((1500, "0 * * * *"), (120, "0 * * * *"), (119, "*/30 * * * *"), (30, "*/15 * * * *")),
        *((10, "*/5 * * * *"), (4, "*/2 * * * *"), (3, "* * * * *"), (1, "* * * * *")),
    ],
)
def test_cron_runs_often_enough_for_one_run_to_fail(delay: int, times: str) -> None:
    assert init.schedule(delay * 60) == times


# --- what is told -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["init"], ["-s is missing: write -s SERVICE", "nodes is missing", "src is missing"]),
        (["-s", "z3", "init"], ["nodes is missing: write nodes='db1 db2'", "src is missing"]),
        (["-s", "z3", "init", "src@osol1=tank"], ["target = nodes: no node is left that"]),
        (["-s", "z3", "init", "tank/data"], ["tank/data: write KEY=VALUE, or KEY@NODE=VALUE"]),
        (["-s", "z3", *words(**PAIR), "src=tank"], ["src is given twice"]),
        (["-s", "z3", "-s", "z4", *words(**PAIR)], ["-s: one only"]),
        (["-s", "z3", "--node", "osol2", *words(**PAIR)], ["it takes no --node: write nodes="]),
        (["-s", "../z3", *words(**PAIR)], ["-s ../z3: no name for a service"]),
        (["-s", "node", *words(**PAIR)], ["-s node: no name for a service"]),
        (["-s", "z3", "--rid", "fs#1", *words(**PAIR)], ["--rid fs#1: not the name of a sync"]),
        (["-s", "z3", *words(**PAIR, only_if="a ; b")], ["only_if: the rest of the value"]),
        (["-s", "z3", *words(**PAIR, ssh="a\n[b]")], ["ssh: the rest of the value"]),
        (["-s", "z3", *words(**PAIR, recursiv="no")], ["recursiv is not a key of a zfs sync"]),
        (
            ["-s", "z3", *words(nodes="osol1 osol2", src="/tank", sync_max_delay="soon")],
            ["src = /tank: a dataset name does not start with /", "sync_max_delay = soon: "],
        ),
        (
            ["-s", "z3", *words(**(PAIR | {"nodes": "osol2 osol3"}))],
            ["nodes = osol2 osol3: this node, osol1, is not among them; add it, or say with --no"],
        ),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], told: list[str]
) -> None:
    code = call(folder, *command)
    *lines, last = capsys.readouterr().err.splitlines()
    assert (code, last, folder.exists()) == (2, "zfs_sync_agent: init: nothing was written", False)
    for line, begin in zip(lines, told, strict=True):
        assert line.startswith(f"zfs_sync_agent: init: {begin}")
    assert str(folder.parent.parent) not in "".join(lines)


def test_a_value_per_node_names_the_nodes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = words(**{"src@osol1": "tank/data", "src@osol2": "backup/data", "dst": "backup/data"})
    assert call(folder, "-s", "z3", *values) == 0, capsys.readouterr().err


def test_a_src_that_another_service_has_is_told_with_its_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, "-s", "z3", *words(**PAIR)) == 0
    assert call(folder, "-s", "z4", *words(**(PAIR | {"dst": "backup/other"}))) == 2
    said = capsys.readouterr().err
    assert f"z3/sync#1 ({folder}/z3.conf:" in said
    assert "snap_prefix = " in said
    assert [one.name for one in folder.iterdir()] == ["z3.conf"]


@pytest.mark.parametrize("name", ["z3.conf", "z3.env"])
def test_a_file_that_is_there_stays_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder.mkdir()
    (folder / name).write_text("mine")
    assert call(folder, "-s", "z3", *words(**PAIR)) == 2
    assert f"{folder}/{name} is there, and init changes no file" in capsys.readouterr().err
    assert [(one.name, one.read_text()) for one in folder.iterdir()] == [(name, "mine")]


def test_a_file_that_came_meanwhile_stays_as_it_is(folder: Path) -> None:
    folder.mkdir()
    (folder / "z3.conf").write_text("mine")
    with pytest.raises(FileExistsError):
        init._write(folder / "z3.conf", "yours")
    assert [(one.name, one.read_text()) for one in folder.iterdir()] == [("z3.conf", "mine")]


# --- what is written --------------------------------------------------------------------------


def test_a_file_is_written_that_everybody_may_read(folder: Path) -> None:
    assert call(folder, "-s", "z3", *words(**PAIR)) == 0
    (file,) = folder.iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("z3.conf", 0o644)
    assert file.read_text() == compose(Wish("z3", "sync#1", PAIR), "osol1")


def test_lines_for_cron_and_nrpe_name_the_folders_that_were_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(folder, "-s", "z3", *words(**PAIR))
    said = capsys.readouterr().out
    folders = f"--config-dir {folder} --state-dir {folder.parent}/state"
    assert f"zfs_sync_agent {folders} --nodename osol1 syncupdate\n" in said
    assert f"check_zfs_sync {folders}\n" in said


def test_a_dry_run_shows_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "-n", "-s", "z3", *words(**PAIR)) == 0
    assert capsys.readouterr().out.endswith(f"\n{compose(Wish('z3', 'sync#1', PAIR), 'osol1')}\n")
    assert not folder.exists()


def test_the_command_without_questions_says_the_same() -> None:
    wish = Wish("z3", "sync#2", PAIR | {"ssh": "ssh -p 22"})
    given = cli.build_parser().parse_intermixed_args(
        [
            *("-s", "z3", "--rid", "sync#2", "init", "nodes=osol1 osol2", "src=tank/data"),
            *("dst=backup/data", "ssh=ssh -p 22"),
        ]
    )
    same = Wish()
    init._take_words(given, same)
    assert same == wish
    assert wish.command() == (
        "zfs_sync_agent -s z3 --rid 'sync#2' init 'nodes=osol1 osol2' src=tank/data"
        " dst=backup/data 'ssh=ssh -p 22'"
    )


# --- validate --deep --------------------------------------------------------------------------


def test_deep_belongs_to_validate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "--deep", "status") == 2
    assert "--deep belongs to validate" in capsys.readouterr().err


def test_validate_asks_no_other_node_and_with_deep_those_that_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(folder, "-s", "z3", *words(**(PAIR | {"nodes": "osol1 osol2 osol3"})))
    capsys.readouterr()
    asked = {}
    for options in ((), ("--deep",), ("--deep", "--node", "osol3")):
        assert call(folder, *options, "validate") == 0
        said = capsys.readouterr().out
        asked[options] = [one for one in ("osol1", "osol2", "osol3") if f"\n{one}: " in f"\n{said}"]
    assert list(asked.values()) == [[], ["osol1", "osol2", "osol3"], ["osol1", "osol3"]]


def test_what_is_wrong_with_a_node_is_exit_status_2_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = PAIR | {"dst": "tank/other"}
    assert (call(folder, "-s", "z3", *words(**values)), folder.exists()) == (2, False)
    folder.mkdir()
    (folder / "z3.conf").write_text(compose(Wish("z3", "sync#1", values), "osol1"))
    capsys.readouterr()
    assert [call(folder, *deep, "validate") for deep in ((), ("--deep",))] == [0, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("osol2: z3/sync#1: dst tank/other: exists, and is not a replica")


def test_a_standby_does_not_complain_of_the_source(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = PAIR | {"src": "standby/data", "dst": "tank/other"}
    assert call(folder, "-s", "z3", *words(**values)) == 0, capsys.readouterr().err


def test_a_broken_file_does_not_keep_the_others_from_being_tried(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(folder, "-s", "z3", *words(**PAIR))
    (folder / "z4.conf").write_text("[sync#1]\ntype = zfs\n")
    assert call(folder, "--deep", "validate") == 2
    assert "osol2: z3/sync#1: dst backup/data: ok" in capsys.readouterr().out
