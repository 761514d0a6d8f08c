"""Which programs a target's streams go through, and what is said where one is missing."""

from collections.abc import Sequence

import pytest

from check_zfs_sync.service import Target
from zfs_sync_agent import judge, pipe
from zfs_sync_agent.errors import Refused
from zfs_sync_agent.observe import Side
from zfs_sync_agent.pipe import Pipe, Programs
from zfs_sync_agent.transport import Answer, Shell

from .notation import resource

PATHS = {name: f"/bin/{name}" for name in ("zstd", "lz4", "gzip", "mbuffer")}
BOTH = resource(compress="zstd", buffer={"osol2": 128 << 20})


def test_a_plain_resource_needs_no_program() -> None:
    needed = pipe.programs(resource(), "osol2")
    assert (needed, pipe.pipe(needed, {}, {})) == (Programs({}, {}, None), Pipe((), ()))


def test_the_source_compresses_and_the_target_expands_and_buffers() -> None:
    needed = pipe.programs(BOTH, "osol2")
    assert pipe.pipe(needed, PATHS, PATHS) == Pipe(
        ("/bin/zstd", "-q", "-c"),
        (
            ("/bin/zstd", "-q", "-d", "-c"),
            ("/bin/mbuffer", "-q", "-s", "128k", "-m", "128M"),
        ),
    )


@pytest.mark.parametrize("name", ["zstd", "lz4", "gzip"])
def test_each_compressor_is_needed_on_both_sides(name: str) -> None:
    needed = pipe.programs(resource(compress=name), "osol2")
    assert needed == Programs({"compress": name}, {"compress": name}, None)


def test_another_target_has_its_own_buffer() -> None:
    assert pipe.programs(BOTH, "osol3").target == {"compress": "zstd"}


def test_what_goes_to_this_node_itself_is_buffered_and_not_compressed() -> None:
    local = BOTH._replace(targets=(Target("osol2", "local"),))
    assert pipe.programs(local, "osol2") == Programs({}, {"buffer": "mbuffer"}, 128 << 20)


def test_a_missing_program_is_refused_with_its_node_package_and_key() -> None:
    with pytest.raises(Refused, match=r"^buffer needs mbuffer, which osol2 does not have$") as said:
        judge.check_programs({"compress": "zstd", "buffer": "mbuffer"}, {"zstd"}, "osol2")
    assert said.value.hint == (
        "install the package mbuffer on osol2, or take buffer out of the service file"
    )


def test_the_programs_are_looked_for_in_the_first_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Sequence[Sequence[str]]] = []

    def answers(commands: Sequence[Sequence[str]]) -> list[Answer]:
        asked.append(commands)
        found = {"zfs": "/sbin/zfs\n", "zstd": "/bin/zstd\n"}
        return [
            Answer(0, found[words[-1]], "") if words[-1] in found else Answer(1, "more", "")
            for words in commands
        ]

    shell = Shell("osol2", ())
    monkeypatch.setattr(shell, "ask", answers)
    side = Side(shell, ("zfs",), sudo=False, programs=("mbuffer", "zstd"))
    more = side.find_zfs([("date",)])
    assert (len(asked), side.paths, more) == (1, {"zstd": "/bin/zstd"}, [Answer(1, "more", "")])
