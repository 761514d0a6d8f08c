# The schedule of zfs_sync_agent(8), on every node that may be a source. A standby sends nothing.
# Remove the # from the last line once `zfs_sync_agent -n syncupdate` says what you want. Or leave it,
# and use the timer: systemctl enable --now zfs_sync_agent.timer
# cron mails what a run prints; a run without failures prints nothing.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
MAILTO=root

#0 * * * * root command -v zfs_sync_agent >/dev/null || exit 0; systemctl -q is-enabled zfs_sync_agent.timer 2>/dev/null || zfs_sync_agent syncupdate
