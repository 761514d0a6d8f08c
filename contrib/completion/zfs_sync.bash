# Completion of zfs_sync_agent and check_zfs_sync in bash.
# Copy to /etc/bash_completion.d/zfs_sync, where the package bash-completion is installed; elsewhere
# to any place, and have it read by ~/.bashrc. Names of services, resources and nodes are those in
# /etc/zfs_sync.

_zfs_sync_names() {
    local files=(/etc/zfs_sync/[!.]*.{conf,env})
    case $1 in
        services)
            printf '%s\n' "${files[@]}" | sed -n 's|.*/\([^*]*\)\.[^.]*$|\1|p' | grep -vx node
            ;;
        rids) sed -n 's/^\[\(sync#[^]:]*\).*/\1/p' "${files[@]}" ;;
        nodes)
            sed -n 's/[[:space:]];.*//
                s/^[a-z_]*@\([^[:space:]=]*\).*/\1/p
                s/^\(nodes\|drpnodes\|target\)[[:space:]]*=//p' "${files[@]}" |
                tr -s ', ' '\n' | grep -vxE 'nodes|drpnodes|local'
            ;;
    esac 2>/dev/null
}

_zfs_sync_complete() {
    local word=$2 before=$3 offered=
    COMPREPLY=()
    case $1:$before in
        *:--config-dir | *:--state-dir) mapfile -t COMPREPLY < <(compgen -d -- "$word") && return ;;
        *:-s | *:--service | *:forget) offered=$(_zfs_sync_names services) ;;
        *:--rid | *check_zfs_sync:-r) offered=$(_zfs_sync_names rids) ;;
        *:--node | *:--target) offered=$(_zfs_sync_names nodes) ;;
        *:--failed) offered='ok warning' ;;
        *:--nodename | *check_zfs_sync:-[wct] | *:--warning | *:--critical | *:--timeout) return ;;
        *check_zfs_sync:*)
            offered='-s --service -r --rid --target -w --warning -c --critical --failed --state-dir
                --config-dir --verify --checkmk --json -t --timeout -v --verbose -V --version -h --help'
            ;;
        *)
            if [[ $word == -* ]]; then
                offered='-s --service --rid --node -n --dry-run -v --verbose --discard --in-place
                    --json --deep --config-dir --state-dir --nodename -V --version -h --help'
            else
                offered='syncnodes syncdrp syncupdate syncresync syncfull takeover forget status
                    validate init'
            fi
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$word")
}

complete -F _zfs_sync_complete zfs_sync_agent check_zfs_sync
