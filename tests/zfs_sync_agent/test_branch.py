"""What is told of a transfer that failed."""

from zfs_sync_agent import branch
from zfs_sync_agent.transport import Stage, Transfer


def test_a_complaint_is_told_without_the_usage_that_follows_it() -> None:
    stderr = "invalid option 'w'\nusage:\n\tsend [-vp] <snapshot>\n\nFor more info: zfs allow"
    done = Transfer(0, (Stage("zfs send -w", 2, stderr), Stage("zfs receive", 0, "")))
    told = branch._transfer_failure(done, "osol2").detail
    assert told == "zfs send -w: exit 2: invalid option 'w'"
