"""Streams of other formats: raw ones of encrypted data, and what a chain may not change.

Needs a ZFS with encryption. The target never has the key.
"""

from __future__ import annotations

import os

import pytest

from tests.e2e.conftest import OSOL1, OSOL2
from tests.e2e.test_resume import PART, WHOLE, assert_the_rest_was_sent, cut_after, token
from tests.e2e.world import OK, World

pytestmark = [pytest.mark.zfs, pytest.mark.needs("raw")]

KEY = "correct horse battery staple\n"
POOL1, POOL2 = "osol1_z3_root", "osol2_z3_root"


@pytest.fixture
def encrypted(one_target: World) -> World:
    """An encrypted tree of two datasets, to be sent raw."""
    world = one_target
    world.src, world.dst = f"{POOL1}/safe", f"{POOL2}/safe"
    lines = [
        "[sync#1]",
        "type = zfs",
        f"src@{OSOL1} = {world.src}",
        f"dst@{OSOL1} = {world.dst}",
        f"target = {OSOL2}",
        "send_options = -w",
    ]
    world.configure("\n".join(lines) + "\n")
    options = (
        "-o",
        "encryption=aes-128-gcm",
        "-o",
        "keyformat=passphrase",
        "-o",
        "pbkdf2iters=100000",
    )
    world.source.run(["zfs", "create", *options, world.src], input=KEY)
    world.source.zfs("create", f"{world.src}/a")
    world.source.write(world.src, "file", b"first")
    world.source.write(f"{world.src}/a", "file", b"first of a")
    return world


def assert_held(world: World) -> None:
    """Assert that the target holds @sent of all datasets, without the key."""
    here, there = world.source.guids(world.src), world.target.guids(world.dst)
    sent = {name[len(world.src) :]: guid for name, guid in here.items() if name.endswith("@sent")}
    assert sent == {name: there.get(f"{world.dst}{name}") for name in sent}
    for name in world.datasets(world.target, world.dst):
        assert world.prop(world.target, "keystatus", f"{world.dst}{name}").value == "unavailable"


def read_with_key(world: World) -> None:
    """Assert, at the end, that what the target holds is what was written, once there is a key."""
    world.target.run(["zfs", "load-key", world.dst], input=KEY)
    for name in world.datasets(world.source, world.src):
        here = world.source.checksums(f"{world.src}{name}@sent")
        assert world.target.checksums(f"{world.dst}{name}@sent") == here


def test_encrypted_data_is_replicated_to_a_target_that_never_has_the_key(encrypted: World) -> None:
    world = encrypted
    world.watch()
    world.sync()
    assert_held(world)
    for content in (b"second", b"third"):
        world.source.write(f"{world.src}/a", "file", content)
        world.sync()
        assert_held(world)
    assert all("-w" in call for call in world.sends())
    assert world.entry(world.target)["flags"] == ["-w"]
    world.assert_tidy(world.target)
    world.assert_check(OK)
    read_with_key(world)


def test_a_raw_transfer_that_was_cut_goes_on_without_the_key(encrypted: World) -> None:
    world = encrypted
    world.sync()
    world.source.write(f"{world.src}/a", "large", os.urandom(WHOLE))
    cut_after(world, PART)
    assert token(world, "/a") != "-"
    world.watch()
    world.sync()
    assert world.sends()[0][1] == "-t"
    assert_the_rest_was_sent(world)
    assert_held(world)
    world.source.write(world.src, "file", b"after it")
    world.sync()
    assert_held(world)
    world.assert_tidy(world.target)
    world.assert_check(OK)
    read_with_key(world)


@pytest.mark.parametrize("options", ["", "-w -L"], ids=["not raw any more", "large blocks too"])
def test_b19_another_format_for_a_chain_that_exists_is_refused(
    encrypted: World, options: str
) -> None:
    world = encrypted
    world.sync()
    held = world.picture(world.target)
    for node in world.nodes:
        file = node.path(f"/etc/zfs_sync/{world.service}.conf")
        text = file.read_text()
        file.write_text(text.replace("send_options = -w", f"send_options = {options}"))
    world.source.write(world.src, "file", b"second")
    block = world.sync(expect=3).stderr
    assert "send_options was changed" in block
    assert "send_options = -w as before" in block
    assert world.picture(world.target).partition("{")[0] == held.partition("{")[0]
    for node in world.nodes:
        file = node.path(f"/etc/zfs_sync/{world.service}.conf")
        file.write_text(text)
    world.sync()
    assert_held(world)
    world.assert_check(OK)


def test_an_option_that_the_target_does_not_know_is_refused_before_anything(
    one_target: World,
) -> None:
    world = one_target
    world.add_keys("receive_options = -M")
    usage = '#!/bin/sh\n[ $# -gt 0 ] && exec /usr/local/sbin/zfs "$@"\n'
    usage += "printf '\\treceive [-vnsu] [-o a=b] <fs>\\n\\tsend [-t] <token>\\n' >&2; exit 2\n"
    file = world.target.root / "bin" / "zfs"
    file.write_text(usage)
    file.chmod(0o755)
    block = world.sync(expect=3).stderr
    assert f"receive_options asks for -M, which zfs receive on {OSOL2} does not have" in block
    assert world.datasets(world.target, POOL2) == [""]
