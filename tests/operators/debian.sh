#!/bin/bash
# Builds a folder that holds a Debian 12 as small as it is installed anywhere, for the packages to be
# installed in: $1, which is there whole or not at all. What the packages need lies in its apt cache,
# not installed, so that a test needs no network. Needs root and the mirror that this machine's own
# apt uses. Changes nothing else on this machine.
set -euo pipefail
result=$1

mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' |
    sed -n 's|^\([^ ]*/debian\)/\{0,1\} .*|\1|p' | sort -u | head -n 1)
if [ -z "$mirror" ]; then
    echo "debian: this machine's apt knows no mirror of Debian's archive (.../debian)" >&2
    exit 1
fi

mkdir -p "$(dirname "$result")"
work=$(mktemp -d "$result.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

inside() {
    chroot "$work" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C \
        DEBIAN_FRONTEND=noninteractive "$@"
}

debootstrap --variant=minbase --include=systemd-sysv,man-db,python3 bookworm "$work" "$mirror"
cp /etc/apt/apt.conf.d/* "$work/etc/apt/apt.conf.d/" 2>/dev/null || :
rm -f "$work"/etc/apt/apt.conf.d/docker-*  # they would make apt forget what it has just fetched
inside apt-get -q update
inside apt-get -q clean
inside apt-get -q -y --no-install-recommends --download-only install \
    python3-nagiosplugin python3-plumbum openssh-client cron
chmod 755 "$work"
mv -T "$work" "$result"
