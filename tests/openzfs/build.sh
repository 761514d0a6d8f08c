#!/bin/bash
# Builds the guest that the OpenZFS lab boots: Debian 12, its cloud kernel, zfs-dkms and
# zfsutils-linux. $1 is the folder of the result (vmlinuz, initrd.img, root.img, version), which is
# there whole or not at all; $2 the suite that ZFS comes from: backports (2.3) or stable (2.1).
# Needs root, a mount namespace of its own, and the mirror that this machine's own apt uses. It starts
# nothing on this machine.
set -euo pipefail
result=$1 suite=${2:-backports}
release=bookworm

packages=python3,python3-plumbum,python3-nagiosplugin,openssh-server,openssh-client,iproute2,kmod
packages=$packages,procps,udev,initramfs-tools,cron

mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' |
    sed -n 's|^\([^ ]*/debian\)/\{0,1\} .*|\1|p' | sort -u | head -n 1)
if [ -z "$mirror" ]; then
    echo "openzfs: this machine's apt knows no mirror of Debian's archive (.../debian)" >&2
    exit 1
fi

mkdir -p "$(dirname "$result")"
work=$(mktemp -d "$result.new-XXXXXX")
root=$work/root

release_all() {
    umount -l "$root/proc" "$root/sys" 2>/dev/null || :
    rm -rf "$work"
}
trap release_all EXIT
trap 'exit 1' INT TERM HUP

inside() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C \
        DEBIAN_FRONTEND=noninteractive "$@"
}

debootstrap --variant=minbase --include="$packages" "$release" "$root" "$mirror"
cp /etc/apt/apt.conf.d/* "$root/etc/apt/apt.conf.d/" 2>/dev/null || :
rm -f "$root"/etc/apt/apt.conf.d/docker-*  # they would make apt forget what it has just fetched
cat >"$root/etc/apt/sources.list" <<SOURCES
deb $mirror $release main contrib
deb $mirror $release-backports main contrib
SOURCES
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
printf '%s\n' virtio_pci virtio_blk ext4 >"$root/etc/initramfs-tools/modules"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"

inside apt-get -q update
inside apt-get -q -y --no-install-recommends install linux-image-cloud-amd64 linux-headers-cloud-amd64
from=()
if [ "$suite" = backports ]; then from=(-t "$release-backports"); fi
inside apt-get -q -y --no-install-recommends "${from[@]}" install zfs-dkms zfsutils-linux
# `dkms` goes on after a module that did not compile.
if ! find "$root/lib/modules" -name 'zfs.ko*' | grep -q .; then
    echo "openzfs: the module was not built; the end of its log:" >&2
    tail -n 40 "$root"/var/lib/dkms/zfs/*/build/make.log >&2 || :
    exit 1
fi
inside dpkg-query -W -f '${Version}\n' zfsutils-linux >"$work/version"
inside update-initramfs -u
umount "$root/proc" "$root/sys"

# What only builds is not needed any more, and would be 1 GB of the image.
rm -rf "$root"/usr/src/* "$root"/var/lib/dkms/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/lib/gcc "$root"/usr/lib/llvm*
# The rest comes with each boot on a second disk, so that the image need not be built again for it.
cat >"$root/sbin/openzfs-init" <<'INIT'
#!/bin/sh
tar -x -f /dev/vdb -C / && exec /openzfs/init.sh
INIT
chmod 755 "$root/sbin/openzfs-init"

truncate -s 4G "$work/root.img"
mke2fs -q -F -t ext4 -E lazy_itable_init=1 -d "$root" "$work/root.img"
cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd.img"
rm -rf "$root"
chmod 755 "$work"
mv -T "$work" "$result"
