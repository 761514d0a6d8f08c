"""The manuals and the README speak of what is there, and of all of it.

They are read as a reader sees them, rendered by mandoc; nothing here judges their wording.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from check_zfs_sync import plugin, service, statefile
from check_zfs_sync.statefile import Attempt, KeptBase, Snapshot, State, Success, TargetState
from tests.zfs_sync_agent.defects import DEFECTS
from zfs_sync_agent import cli

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
PAGES = sorted((REPOSITORY / "man").iterdir())
CRON = REPOSITORY / "contrib/cron.d/zfs_sync_agent"
NRPE = REPOSITORY / "contrib/nrpe/zfs_sync.cfg"

needs_mandoc = pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    return cli.build_parser() if program == "zfs_sync_agent" else plugin._parser()


@cache
def rendered(page: str) -> str:
    command = ["mandoc", "-T", "ascii", "-O", "width=1000", str(REPOSITORY / "man" / page)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.sub(".\b", "", text)


def options_of(program: str) -> list[str]:
    return [option for action in parser_of(program)._actions for option in action.option_strings]


def commands_in(text: str, program: str) -> list[list[str]]:
    """Return the arguments of the program wherever the text shows how it is run."""
    shown = re.findall(r"^    (.*)", text, re.MULTILINE) + re.findall(r"`([^`]+)`", text)
    lines = [re.split(r"\s+# ", line)[0] for line in shown]
    found = (re.search(rf"(?:^|[\s/=]){program}((?: +[^\s|;>]+)*)$", line) for line in lines)
    return [shlex.split(match[1]) for match in found if match]


def assert_understood(program: str, arguments: list[str]) -> None:
    if arguments in ([], ["--help"], ["--version"]):
        return
    try:
        parser_of(program).parse_args(arguments)
    except (SystemExit, Exception) as error:
        pytest.fail(f"{program} {shlex.join(arguments)}: {error}")


@needs_mandoc
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_clean(page: Path) -> None:
    result = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(page)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.returncode) == ("", 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_clean_for_groff_too(page: Path) -> None:
    result = subprocess.run(
        ["groff", "-mandoc", "-T", "ascii", "-ww", "-z", str(page)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


@needs_mandoc
@pytest.mark.parametrize(
    ("program", "page"),
    [("zfs_sync_agent", "zfs_sync_agent.8"), ("check_zfs_sync", "check_zfs_sync.1")],
)
def test_page_has_every_option(program: str, page: str) -> None:
    text = rendered(page)
    missing = [one for one in options_of(program) if not re.search(rf"(?<![\w-]){one}(?!\w)", text)]
    assert missing == []


@needs_mandoc
def test_page_of_the_agent_has_every_action() -> None:
    actions = re.search(r"^ACTIONS\n(.*?)^\S", rendered("zfs_sync_agent.8"), re.DOTALL | re.M)
    assert actions
    missing = [one for one in cli.ACTIONS if not re.search(rf"\b{one}\b", actions[1])]
    assert missing == []


def refusals() -> list[str]:
    """Return the text of every refusal in the code; what is known only at run time is `?`."""
    found = []
    for file in (REPOSITORY / "zfs_sync_agent").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name("Refused" | "BrokenChain"), args=[what]):
                    parts = what.values if isinstance(what, ast.JoinedStr) else [what]
                    texts = [str(p.value) if isinstance(p, ast.Constant) else "?" for p in parts]
                    found.append("".join(texts))
    return found


@needs_mandoc
def test_page_of_the_agent_has_every_refusal_by_its_words() -> None:
    chapter = re.search(
        r"^WHEN IT REFUSES\n(.*?)^\S", rendered("zfs_sync_agent.8"), re.DOTALL | re.M
    )
    assert chapter
    told = re.findall(r'^ +"(.*)"$', chapter[1], re.MULTILINE)
    patterns = [
        ".*".join(re.escape(word) for word in re.split(r" ?\.\.\.,? ?", one)) for one in told
    ]
    missing = [
        text
        for text in refusals()
        if re.search(r"\w{3}", text) and not any(re.search(one, text) for one in patterns)
    ]
    assert missing == []


@needs_mandoc
def test_page_of_service_files_has_every_key() -> None:
    text = rendered("zfs_sync.conf.5")
    keys = re.findall(r"^ +(\w+) \((?:required|default: .*)\)", text, re.MULTILINE)
    assert sorted(keys) == sorted(service.KEYS)


def test_service_files_in_their_page_are_valid_on_every_node_that_they_name(tmp_path: Path) -> None:
    page = (REPOSITORY / "man/zfs_sync.conf.5").read_text()
    blocks = re.findall(r"^\.Bd -literal.*\n((?:(?!\.Ed).*\n)*)", page, re.MULTILINE)
    files = [block for block in blocks if "[sync#1]" in block]
    assert len(files) == 4
    for text in files:
        (tmp_path / "z3.opensvc.com.env").write_text(text)
        listed = " ".join(re.findall(r"^(?:drp)?nodes = (.*)", text, re.MULTILINE))
        for node in {*re.findall(r"^\w+@(\S+)", text, re.MULTILINE), *listed.split()}:
            services, problems = service.load_services(str(tmp_path), nodename=node)
            assert (problems, services[0].ignored) == ((), ()), node


@needs_mandoc
def test_page_of_the_scheme_knows_every_word_of_a_state_file() -> None:
    text = rendered("zfs_sync.7").partition("STATE FILE\n")[2]
    words = {*statefile.MODES, *statefile.STATUSES}
    words |= {*State._fields, *TargetState._fields, *Snapshot._fields, *Success._fields}
    words |= {*Attempt._fields, *KeptBase._fields}
    assert {word for word in words if not re.search(rf"\b{word}\b", text)} == set()


@needs_mandoc
def test_page_of_the_scheme_names_only_tests_that_exist() -> None:
    named = set(re.findall(r"\btest_\w+", rendered("zfs_sync.7")))
    sources = [file.read_text() for file in (REPOSITORY / "tests").rglob("test_*.py")]
    there = {name for text in sources for name in re.findall(r"def (test_\w+)", text)}
    files = {file.stem for file in (REPOSITORY / "tests").rglob("test_*.py")}
    assert named - there - files == set()


def test_page_of_the_scheme_names_every_defect_that_the_proof_catches() -> None:
    text = (REPOSITORY / "man" / "zfs_sync.7").read_text()
    chapter = text[text.index(".Sh THE PROOF") : text.index(".Sh STATE FILE")]
    said = {line.rstrip(";.") for line in chapter.splitlines()}
    assert {defect.name for defect in DEFECTS} <= said


@pytest.mark.parametrize("program", ["zfs_sync_agent", "check_zfs_sync"])
def test_readme_shows_only_commands_that_exist(program: str) -> None:
    commands = commands_in(README, program)
    assert commands
    for arguments in commands:
        assert_understood(program, arguments)


def test_readme_names_only_options_that_exist() -> None:
    known = {*options_of("zfs_sync_agent"), *options_of("check_zfs_sync")}
    spans = re.findall(r"`(-[^`\s]*)(?: [^`]*)?`", README)
    of_zfs = {"-R", "-d", "-p", "-o", "-x"}
    assert {span for span in spans if span not in known | of_zfs} == set()


def test_readme_lists_every_module() -> None:
    listed = set(re.findall(r"^    ((?:check_zfs_sync|zfs_sync_agent)/\w+\.py) ", README, re.M))
    there = {
        f"{package}/{file.name}"
        for package in ("check_zfs_sync", "zfs_sync_agent")
        for file in (REPOSITORY / package).glob("*.py")
        if not file.name.startswith("__")
    }
    assert listed == there


def test_readme_has_the_service_file_of_the_demo() -> None:
    demo = (REPOSITORY / "tests/demo/z3.opensvc.com.env").read_text()
    assert "".join(f"    {line}\n" for line in demo.splitlines()) in README


def test_cron_file_is_one_that_cron_reads() -> None:
    text = CRON.read_text()
    assert "." not in CRON.name
    assert text.endswith("\n")
    assert "%" not in text
    lines = [line for line in text.splitlines() if re.match(r"[\d*]", line)]
    assert [line.split()[5] for line in lines] == ["root"]
    assert_understood("zfs_sync_agent", lines[0].rpartition("zfs_sync_agent ")[2].split())


def test_nrpe_commands_are_understood() -> None:
    lines = [line for line in NRPE.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        match = re.fullmatch(r"command\[\w+\]=/usr/local/bin/check_zfs_sync(.*)", line)
        assert match, line
        assert_understood("check_zfs_sync", shlex.split(match[1]))
