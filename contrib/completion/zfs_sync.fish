# Completion of zfs_sync_agent and check_zfs_sync in fish.
# Copy to /etc/fish/conf.d/zfs_sync.fish. Names of services, resources and nodes are those in
# /etc/zfs_sync.

function __zfs_sync_files
    set -l files /etc/zfs_sync/*.conf /etc/zfs_sync/*.env
    string join \n $files
end

function __zfs_sync_services
    __zfs_sync_files | string replace -r '.*/(.*)\.\w+$' '$1' | string match -v node
end

function __zfs_sync_rids
    cat (__zfs_sync_files) </dev/null | string replace -fr '^\[(sync#[^]:]*).*' '$1' | sort -u
end

function __zfs_sync_nodes
    cat (__zfs_sync_files) </dev/null | string replace -r '\s;.*' '' |
        string replace -fr '^(?:[a-z_]*@([^\s=]*)|(?:nodes|drpnodes|target)\s*=(.*)).*' '$1 $2' |
        string replace -a , ' ' | string split -n ' ' | string match -rv '^(nodes|drpnodes|local)$' |
        sort -u
end

complete -c zfs_sync_agent -f
complete -c zfs_sync_agent -s s -l service -x -a '(__zfs_sync_services)' -d 'only this service'
complete -c zfs_sync_agent -l rid -x -a '(__zfs_sync_rids)' -d 'only this sync resource'
complete -c zfs_sync_agent -l node -x -a '(__zfs_sync_nodes)' -d 'only this target'
complete -c zfs_sync_agent -s n -l dry-run -d 'print the plan, change nothing'
complete -c zfs_sync_agent -s v -l verbose -d 'log to stderr too'
complete -c zfs_sync_agent -l discard -d 'syncresync: keep nothing of what is rolled back'
complete -c zfs_sync_agent -l in-place -d 'syncfull: destroy what is there first'
complete -c zfs_sync_agent -l json -d 'status as a list of JSON objects'
complete -c zfs_sync_agent -l deep -d 'validate: try ssh, zfs and the rest on each node'
complete -c zfs_sync_agent -l config-dir -x -a '(__fish_complete_directories)' -d 'service files'
complete -c zfs_sync_agent -l state-dir -x -a '(__fish_complete_directories)' -d 'state files'
complete -c zfs_sync_agent -l nodename -x -d 'name of this node'
complete -c zfs_sync_agent -s V -l version -d 'print the version'
complete -c zfs_sync_agent -s h -l help -d 'print the help'
set -l actions syncnodes syncdrp syncupdate syncresync syncfull takeover forget status validate init
set -l first "not __fish_seen_subcommand_from $actions"
complete -c zfs_sync_agent -n $first -a syncnodes -d 'synchronize the targets of `nodes`'
complete -c zfs_sync_agent -n $first -a syncdrp -d 'synchronize the targets of `drpnodes`'
complete -c zfs_sync_agent -n $first -a syncupdate -d 'synchronize all targets'
complete -c zfs_sync_agent -n $first -a syncresync -d 'roll a target back, keep the rest beside it'
complete -c zfs_sync_agent -n $first -a syncfull -d 'send everything to a target anew'
complete -c zfs_sync_agent -n $first -a takeover -d 'make this node the source'
complete -c zfs_sync_agent -n $first -a forget -d 'remove traces of what is not configured'
complete -c zfs_sync_agent -n $first -a status -d 'show every resource and target'
complete -c zfs_sync_agent -n $first -a validate -d 'check the service files'
complete -c zfs_sync_agent -n $first -a init -d 'write a new service file'
complete -c zfs_sync_agent -n '__fish_seen_subcommand_from forget' \
    -a '(__zfs_sync_services; __zfs_sync_rids; __zfs_sync_nodes)'

complete -c check_zfs_sync -f
complete -c check_zfs_sync -s s -l service -x -a '(__zfs_sync_services)' -d 'only this service'
complete -c check_zfs_sync -s r -l rid -x -a '(__zfs_sync_rids)' -d 'only this sync resource'
complete -c check_zfs_sync -l target -x -a '(__zfs_sync_nodes)' -d 'only this target node'
complete -c check_zfs_sync -s w -l warning -x -d 'range, instead of sync_max_delay'
complete -c check_zfs_sync -s c -l critical -x -d 'range, none unless given'
complete -c check_zfs_sync -l failed -x -a 'ok warning' -d 'state of a failed last attempt'
complete -c check_zfs_sync -l state-dir -x -a '(__fish_complete_directories)' -d 'state files'
complete -c check_zfs_sync -l config-dir -x -a '(__fish_complete_directories)' -d 'service files'
complete -c check_zfs_sync -l verify -d 'ask the local zfs for the recorded snapshots'
complete -c check_zfs_sync -l checkmk -d 'the lines of a local check for checkmk'
complete -c check_zfs_sync -l json -d 'one JSON object, for programs'
complete -c check_zfs_sync -s t -l timeout -x -d 'seconds, then UNKNOWN'
complete -c check_zfs_sync -s v -l verbose -d 'a line per replica; -vv also the paths'
complete -c check_zfs_sync -s V -l version -d 'print the version, exit 3'
complete -c check_zfs_sync -s h -l help -d 'print the help, exit 3'
