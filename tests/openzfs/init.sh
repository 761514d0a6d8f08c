#!/bin/sh
# The guest's first process: mounts, network, ZFS, then a server that runs commands for the test.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root
trap '' CHLD # orphans become its children: ignoring the signal reaps them
mount -t proc proc /proc
mount -t sysfs sysfs /sys 2>/dev/null
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /images /run/lock /run/sshd /run/pools /run/clones
ln -s /images /run/images # on the disk: a pool outlives a power cut
modprobe virtio_net # not zfs: a saved state would give all guests the same row of guids
echo 'KERNEL=="zfs", MODE="0666"' >/etc/udev/rules.d/99-zfs.rules
hostname guest.example.com
ip link set lo up
/lib/systemd/systemd-udevd --daemon
for link in /sys/class/net/e*; do
    # The test tells by the last byte of the hardware address which link is which.
    name=${link##*/}
    case $(cat "$link/address") in
    *:01) ip address add 10.0.2.15/24 dev "$name" && ip link set "$name" up ;;
    esac
done
python3 -S /openzfs/server.py </dev/null &
exec sleep infinity
