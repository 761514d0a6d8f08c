"""contrib/completion, asked in the real shells: what the parsers know is offered, and nothing else.

The shells run in a mount namespace of their own, where /etc/zfs_sync is the test's. bash and fish
are asked by their own means, zsh through a terminal, as it completes nowhere else.
"""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from check_zfs_sync import plugin
from tests.demo import demo
from tests.lab.process import eventually
from tests.operators.conftest import CONTRIB
from zfs_sync_agent import cli

FOLDER = CONTRIB / "completion"
EXAMPLE = Path(demo.__file__).parent / "z3.opensvc.com.env"
PARSERS = {"zfs_sync_agent": cli.build_parser(), "check_zfs_sync": plugin._parser()}
WEB = """\
[DEFAULT]
drpnodes = dr1.example.net
[sync#2]
type = zfs
src@osol1 = tank/web  ; the short name
target = osol2.opensvc.com, drpnodes
"""

# With another /etc/zfs_sync than the machine's; nothing of it is seen outside.
ENTER = 'mount -t overlay overlay /etc -o "lowerdir=$1:/etc" && shift && exec "$@"'

Ask = Callable[[str], set[str]]


@pytest.fixture
def inside(tmp_path: Path) -> list[str]:
    """The words that run a command where /etc/zfs_sync holds the README's example."""
    config = tmp_path / "zfs_sync"
    config.mkdir()
    (config / EXAMPLE.name).write_text(EXAMPLE.read_text())
    (config / "web.conf").write_text(WEB)
    (config / "node.conf").write_text("[DEFAULT]\nnodes = osol1.opensvc.com osol2.opensvc.com\n")
    return ["unshare", "--mount", "sh", "-c", ENTER, "sh", str(tmp_path)]


def run(*argv: str) -> str:
    """Return what a command prints; it may complain of nothing."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr == "", f"{argv}: {done.stderr}"
    return done.stdout


def bash(inside: list[str]) -> Ask:
    """Ask the function that bash would call, with the words that it would give."""
    script = """
        source "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        complete -p "$1" | grep -q -- '-F _zfs_sync_complete' || exit
        _zfs_sync_complete "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    shell = [*inside, "bash", "--norc", "-c", script, "bash", str(FOLDER / "zfs_sync.bash")]
    return lambda line: set(run(*shell, *words_of(line)).splitlines()) - {""}


def words_of(line: str) -> list[str]:
    """Return the words of a line; the last one is empty after a space."""
    return [*shlex.split(line), *([""] if line.endswith(" ") else [])]


def fish(inside: list[str]) -> Ask:
    """Ask `complete -C`; a description follows after a tab."""
    file = shlex.quote(str(FOLDER / "zfs_sync.fish"))
    script = f"source {file}; complete -C $argv[1]"
    shell = [*inside, "fish", "--no-config", "-c", script]
    return lambda line: {one.split("\t")[0] for one in run(*shell, line).splitlines()}


def zsh(inside: list[str]) -> Ask:
    """Type the line into a terminal, and have every match written to a file as it is added."""
    folder = Path(inside[-1])
    out, setup = folder / "matches", folder / "setup"
    setup.write_text(f"""
        fpath=({shlex.quote(str(FOLDER))} $fpath)
        autoload -Uz compinit && compinit -D
        compadd() {{
            # With -O, -A or -D the functions only ask; what is added is what is offered.
            if (( ! ${{@[(I)-[OAD]*]}} )); then
                local -a matches
                builtin compadd -O matches "$@"
                print -rl -- $matches >>{out}
            fi
            builtin compadd "$@"
        }}
        tell() {{ zle list-choices; print END >>{out} }}
        zle -N tell
        bindkey '^T' tell
        print READY >>{out}
    """)

    def ask(line: str) -> set[str]:
        out.write_text("")
        main, terminal = pty.openpty()
        process = subprocess.Popen(
            [*inside, "zsh", "-f", "-i"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        try:
            os.write(main, f"source {setup}\n".encode())
            eventually("zsh is ready", lambda: "READY\n" in out.read_text())
            os.write(main, f"{line}\x14".encode())
            eventually("zsh has answered", lambda: "END\n" in out.read_text())
        finally:
            process.kill()
            process.wait()
            os.close(main)
            os.close(terminal)
        return set(out.read_text().splitlines()) - {"", "READY", "END"}

    return ask


@pytest.mark.parametrize("shell", [bash, fish, zsh])
def test_every_option_and_action_is_offered_and_nothing_else(
    shell: Callable[[list[str]], Ask], inside: list[str]
) -> None:
    ask = shell(inside)
    for program, parser in PARSERS.items():
        options = {option for one in parser._actions for option in one.option_strings}
        assert ask(f"{program} -") == options
        assert ask(f"{program} --") == {one for one in options if one.startswith("--")}
    assert ask("zfs_sync_agent ") == set(cli.ACTIONS)
    assert ask("zfs_sync_agent syncn") == {"syncnodes"}
    assert ask("check_zfs_sync --failed ") == {"ok", "warning"}
    assert ask("check_zfs_sync -t ") == set()


@pytest.mark.parametrize("shell", [bash, fish, zsh])
def test_the_names_of_the_service_files_are_offered(
    shell: Callable[[list[str]], Ask], inside: list[str]
) -> None:
    ask = shell(inside)
    services, rids = {"z3.opensvc.com", "web"}, {"sync#1", "sync#2"}
    nodes = {"osol1", "osol1.opensvc.com", "osol2.opensvc.com", "dr1.example.net"}
    for option, names in (("-s", services), ("--rid", rids), ("--node", nodes)):
        assert ask(f"zfs_sync_agent {option} ") == names
    for option, names in (("--service", services), ("-r", rids), ("--target", nodes)):
        assert ask(f"check_zfs_sync {option} ") == names
    assert ask("zfs_sync_agent forget ") >= services
    assert ask("zfs_sync_agent -s z") == {"z3.opensvc.com"}


@pytest.mark.parametrize("shell", [bash, fish, zsh])
def test_without_a_service_file_no_name_is_offered(
    shell: Callable[[list[str]], Ask], inside: list[str]
) -> None:
    ask = shell(inside)
    for file in Path(inside[-1], "zfs_sync").iterdir():
        file.unlink()
    for option in ("-s", "--rid", "--node"):
        assert ask(f"zfs_sync_agent {option} ") == set()
