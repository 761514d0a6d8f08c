#!/bin/bash
# Boots systemd as the first process of a machine made of namespaces; runs as their process 1 already.
# $1 the folder of its Debian, which stays as it is: changes go to memory, mounted at $2, and are
# gone with the last process. $3 a control group for it to live in. It has no network.
set -euo pipefail
debian=$1 memory=$2 group=$3

if [ "${4:-}" != inside ]; then
    mkdir "$group"
    echo 0 >"$group/cgroup.procs"
    exec unshare --cgroup bash "$0" "$@" inside
fi

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$memory"
cd "$memory"
mkdir upper work root
mount -t overlay overlay root -o "lowerdir=$debian,upperdir=upper,workdir=work"
cd root

mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
: >dev/console

echo osol1.opensvc.com >etc/hostname
pivot_root . .
umount -l .
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=1 \
    /lib/systemd/systemd --log-target=console --show-status=no --unit=basic.target
