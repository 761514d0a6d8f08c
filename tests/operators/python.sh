#!/bin/bash
# Makes a Debian of the release $1 in the folder $2, which is there whole or not at all: its own
# Python, with the libraries of both programs and what their tests need. Needs root, a mount
# namespace of its own, and the mirror that this machine's own apt uses. It starts nothing.
set -euo pipefail
release=$1 result=$2

mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' |
    sed -n 's|^\([^ ]*/debian\)/\{0,1\} .*|\1|p' | sort -u | head -n 1)
if [ -z "$mirror" ]; then
    echo "python: this machine's apt knows no mirror of Debian's archive (.../debian)" >&2
    exit 1
fi

mkdir -p "$(dirname "$result")"
work=$(mktemp -d "$result.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

debootstrap --variant=minbase \
    --include=python3,python3-nagiosplugin,python3-plumbum,python3-pytest,python3-hypothesis \
    "$release" "$work/root" "$mirror"
umount "$work/root/proc" "$work/root/sys" 2>/dev/null || :
rm -rf "$work/root"/var/cache/apt/archives/*.deb "$work/root"/var/lib/apt/lists/*
chmod 755 "$work/root"
mv -T "$work/root" "$result"
