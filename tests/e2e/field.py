"""How ZFS replication fails in the field, and which tests hold that this agent does not.

Twenty-five failures, found in the code and in the issue trackers of other tools. The table says
what goes wrong there, by which tests it is held here, and what the ZFS of the lab cannot show.
test_field_table.py holds the table true; pytest prints it at the end of a session that ran any of
its tests. Nothing here tests anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import NamedTuple

import pytest

FOLDER = "tests/"  # that the names of tests are relative to


class Failure(NamedTuple):
    """One failure; `beyond` says what cannot occur or cannot be shown here, and why."""

    what: str
    tests: tuple[str, ...]
    beyond: str = ""


def held(what: str, *tests: str, beyond: str = "") -> Failure:
    """Return a row; a test is `file::name`, the file relative to tests/ and without `.py`."""
    return Failure(what, tests, beyond)


FAILURES: dict[int, Failure] = {
    1: held(
        "the base has the same name and another guid: the whole replica is destroyed",
        "e2e/test_refusals::test_b01_a_sent_taken_again_on_the_source_is_refused",
        "e2e/test_field::"
        "test_b01_a_base_with_our_name_and_mark_and_another_guid_lets_nothing_be_written",
        "e2e/test_field::test_b01_a_source_that_was_made_anew_under_its_name_leaves_the_replica_whole",
    ),
    2: held(
        "the first sync onto a live dataset erases it",
        "e2e/test_refusals::test_b02_a_first_sync_onto_an_existing_dataset_is_refused",
        "e2e/test_field::test_b02_a_first_sync_onto_a_mounted_dataset_leaves_it_mounted_and_whole",
        "e2e/test_first::test_no_command_ever_has_the_flag_that_forces",
    ),
    3: held(
        "snapshots and children that only the target has are destroyed",
        "e2e/test_strangers::"
        "test_b03_foreign_snapshots_of_the_replica_older_and_newer_than_sent_survive",
        "e2e/test_strangers::test_b03_a_foreign_child_of_the_replica_survives",
        "e2e/test_strangers::test_b03_a_copy_of_a_child_made_by_hand_is_never_taken_for_the_child",
    ),
    4: held(
        "a whole pool is the source, and unrelated datasets of the target's pool are destroyed",
        "e2e/test_first::test_b04_a_whole_pool_as_src_is_refused_with_a_hint",
        "e2e/test_field::"
        "test_b04_a_whole_pool_goes_below_another_pool_and_spares_what_is_beside_it",
        "e2e/test_strangers::test_what_is_beside_dst_is_never_touched",
    ),
    5: held(
        "it was received, but the answer was lost, or the run killed before the source rotated",
        "e2e/test_field_cut::test_b05_what_the_target_has_rotated_is_not_sent_again_to_it",
        "e2e/test_targets::"
        "test_b05_an_answer_lost_while_the_target_rotates_converges_though_it_is_away_then",
        "e2e/test_kill::test_a_run_killed_around_any_command_is_mended_by_the_next",
    ),
    6: held(
        "killed between destroy and rename on the target: B is destroyed and all is sent again",
        "e2e/test_field_cut::"
        "test_b06_a_target_cut_between_destroy_and_rename_keeps_what_it_received",
    ),
    7: held(
        "killed between destroy and rename on the source: every later run fails",
        "e2e/test_field_cut::"
        "test_b07_a_source_cut_between_destroy_and_rename_goes_on_incrementally",
    ),
    8: held(
        "of two targets one is down: the other fails too, or is sent in full",
        "e2e/test_targets::"
        "test_b08_one_of_two_targets_down_for_three_runs_comes_back_without_a_full_stream",
        "e2e/test_targets::test_b08_a_new_target_that_waits_at_a_child_holds_up_nobody",
        "e2e/test_targets::test_targets_that_take_turns_in_being_down_converge",
        "e2e/test_targets::test_a_new_target_with_a_slow_first_stream_holds_up_nobody",
    ),
    9: held(
        "a child fails to be sent, and receive says that all is well",
        "e2e/test_field_cut::"
        "test_b09_a_child_that_could_not_be_sent_is_told_and_nothing_is_rotated",
    ),
    10: held(
        "the first stream of a tree is cut: every later one is refused",
        "e2e/test_field_cut::"
        "test_b10_a_first_stream_of_the_tree_cut_inside_any_dataset_sends_the_rest_in_the_next_run",
        "e2e/test_field_cut::"
        "test_b10_a_first_sync_that_is_cut_after_each_dataset_sends_each_of_them_once",
    ),
    11: held(
        "a resume token of a snapshot that is gone blocks everything",
        "e2e/test_field_cut::"
        "test_b11_a_transfer_cut_inside_a_dataset_leaves_no_token_and_begins_anew",
        "e2e/test_resume::test_b11_what_was_received_of_a_snapshot_that_is_gone_is_given_up",
        beyond="zfs-fuse has no tokens; test_resume.py runs with OpenZFS.",
    ),
    12: held(
        "an incremental stream of a tree stops in the middle; a child without base is destroyed",
        "e2e/test_field_cut::"
        "test_b12_an_incremental_stream_cut_in_the_middle_leaves_some_at_b_and_the_rest_is_sent",
        "e2e/test_field::test_b12_a_child_that_lost_its_base_on_the_target_is_not_destroyed",
        "e2e/test_kill::test_a_transfer_killed_at_any_byte_amid_changes_is_mended_by_the_next",
    ),
    13: held(
        "the source is rolled back: the target's newer copy is destroyed, and it is stuck",
        "e2e/test_field::"
        "test_b13_a_child_rolled_back_on_the_source_keeps_its_newer_copy_and_the_others_go_on",
        "e2e/test_field::test_b13_a_source_rolled_back_is_left_alone_until_syncresync",
    ),
    14: held(
        "children are created, destroyed, renamed, re-created",
        "e2e/test_first::test_b14_children_born_renamed_moved_and_destroyed_are_followed",
        "e2e/test_first::"
        "test_b14_a_child_destroyed_and_re_created_between_two_runs_is_replaced_in_one",
        "e2e/test_first::test_a_gone_child_is_kept_or_stops_the_sync_where_the_file_says_so",
    ),
    15: held(
        "the base was pruned on the source, and the send goes on without it",
        "e2e/test_refusals::"
        "test_b15_a_sent_that_someone_destroyed_on_the_source_is_broken_and_sends_nothing",
        "e2e/test_field::test_b15_a_base_pruned_from_one_child_is_told_and_the_others_go_on",
    ),
    16: held(
        "the replica was written to: it is stuck, or that is discarded without a word",
        "e2e/test_refusals::test_b16_what_was_written_on_a_replica_is_rolled_back_and_said",
        "e2e/test_refusals::"
        "test_b16_what_was_written_on_a_replica_stays_where_the_file_says_refuse",
        beyond="zfs-fuse does not tell how many bytes were written: the log says `changed`."
        " With OpenZFS test_discards.py compares the bytes.",
    ),
    17: held(
        "the replica is mounted over what the target uses",
        "e2e/test_field::"
        "test_b17_a_mountpoint_that_the_target_uses_is_refused_before_anything_is_received",
        "e2e/test_field::test_b17_where_receive_knows_u_nothing_that_is_received_is_mounted",
        "e2e/test_field::test_b17_nothing_that_is_received_is_mounted",
        beyond="zfs-fuse has neither receive -u nor -x: that -u is given is shown by a stand-in,"
        " both with OpenZFS. Only the first run compares mountpoints; one that a later run brings"
        " is left to -u.",
    ),
    18: held(
        "a quota or a reservation travels, and nothing more is received",
        "e2e/test_field::test_b18_a_quota_and_a_reservation_that_travel_stop_nothing",
        beyond="The agent leaves properties to receive_options, which zfs-fuse lacks.",
    ),
    19: held(
        "one stream of another format ends a raw chain",
        "e2e/test_field::test_b19_a_stream_that_cannot_be_raw_is_not_sent_at_all",
        "e2e/test_formats::test_b19_another_format_for_a_chain_that_exists_is_refused",
        beyond="zfs-fuse has no raw streams; test_formats.py runs with OpenZFS.",
    ),
    20: held(
        "runs overlap, or two sources have one dst",
        "e2e/test_trouble::test_b20_a_second_run_leaves_the_first_alone_quietly",
        "e2e/test_keys::test_both_nodes_of_the_symmetric_file_fire_at_once",
        "e2e/test_refusals::test_a_second_source_that_never_sent_leaves_the_replica_of_the_first",
        "e2e/test_refusals::"
        "test_a_second_source_that_has_sent_before_is_refused_and_both_are_named",
    ),
    21: held(
        "a transfer hangs for ever",
        "e2e/test_field::test_b21_a_receive_that_hangs_ends_the_run_and_leaves_nothing_running",
        "e2e/test_stall::test_a_link_that_hangs_ends_its_transfer_and_holds_up_no_other",
        "e2e/test_stall::test_a_receive_whose_source_has_given_up_ends",
        "e2e/test_stall::test_a_command_on_a_link_that_hangs_ends_the_run",
    ),
    22: held(
        "a hold or a clone keeps the old base from being destroyed",
        "e2e/test_strangers::test_b22_a_clone_or_a_hold_of_sent_stops_nothing_and_leaves_nothing",
    ),
    23: held(
        "a failure is reported as a success",
        "e2e/test_field_cut::test_b23_a_receive_that_says_0_and_received_nothing_is_a_failure",
        "e2e/test_trouble::test_a_target_in_trouble_is_told_and_recovers_in_the_next_run",
        "e2e/test_truth::test_a_configured_target_that_never_was_synchronized_warns",
    ),
    24: held(
        "time zones, summer time and clocks make old data look young",
        "e2e/test_field::test_b24_the_age_is_that_of_the_snapshot_in_whatever_zone_the_nodes_are",
        "e2e/test_field::test_b24_a_target_with_another_clock_is_told_and_never_ok",
    ),
    25: held(
        "names with spaces, a short PATH, missing rights",
        "e2e/test_first::test_b25_names_with_spaces_arrive",
        "e2e/test_trouble::test_from_cron_a_success_is_silent_and_a_failure_is_one_block",
        "e2e/test_trouble::test_the_commands_in_the_log_can_be_pasted",
        beyond="In the lab all is done by root: zfs-fuse knows no zfs allow.",
    ),
}


def name_of(nodeid: str) -> str:
    """Return a test as the table names it, from pytest's id of it; its parameters do not count."""
    file, _, name = nodeid.partition("::")
    return f"{file.removeprefix(FOLDER).removesuffix('.py')}::{name.partition('[')[0]}"


def outcome(tests: tuple[str, ...], outcomes: Mapping[str, set[str]]) -> str:
    """Return one word, or two, for a row; a test that did not run proves nothing.

    One that was skipped is not applicable to this lab's ZFS, see conftest.py.
    """
    tests = tuple(test for test in tests if outcomes.get(test) != {"skipped"})
    ran = [outcomes[test] for test in tests if test in outcomes]
    if any(one - {"passed"} for one in ran):
        return "failed"
    if not ran:
        return "not run"
    return "passed" if len(ran) == len(tests) else f"{len(ran)} of {len(tests)} passed"


def lines(outcomes: Mapping[str, set[str]]) -> Iterator[str]:
    """Return the table as it is printed."""
    for number, failure in FAILURES.items():
        word = outcome(failure.tests, outcomes)
        yield f"B{number:<3} {word:13} {failure.what}"
        for line in wrap(failure.beyond, 80, break_on_hyphens=False):
            yield f"{'':18} {line}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, with several workers as well: their reports come together here."""
    outcomes: dict[str, set[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            # A setup or a teardown counts where it failed, or was not applicable.
            if isinstance(report, pytest.TestReport) and (
                report.when == "call" or report.outcome != "passed"
            ):
                outcomes.setdefault(name_of(report.nodeid), set()).add(report.outcome)
    if any(test in outcomes for failure in FAILURES.values() for test in failure.tests):
        terminalreporter.section("failures of the field")
        for line in lines(outcomes):
            terminalreporter.line(line)
