# Makes the calling process, which has namespaces of its own, a test host; then only holds them.
# Everything a host writes to is covered here, so that the machine around it keeps no trace:
# /etc, /opt, /root, /usr/local and /var by an overlay, /run and /dev by a fresh tmpfs.
# $1 the node's folder outside, $2 the host name, $3... pairs of inside folder and name in $1.
set -eu
umask 022
outside=$1 name=$2
shift 2

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/node /run/lock /run/zfs /run/sshd /run/pools /run/images /run/clones /run/dev
mount --bind "$outside" /run/node

for dir in /etc /opt /root /usr/local /var; do
    mkdir -p "/run/overlay$dir/upper" "/run/overlay$dir/work"
    mount -t overlay overlay "$dir" \
        -o "lowerdir=$dir,upperdir=/run/overlay$dir/upper,workdir=/run/overlay$dir/work"
done

mount -t tmpfs -o mode=755 tmpfs /run/dev
for device in null zero full random urandom tty fuse; do
    : >"/run/dev/$device"
    mount --bind "/dev/$device" "/run/dev/$device"
done
mkdir /run/dev/pts /run/dev/shm
mount --rbind /dev/pts /run/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /run/dev/shm
ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${number%:*}" "/run/dev/${number#*:}"
done
: >/run/dev/log
mount --bind /run/node/log.socket /run/dev/log
mount --move /run/dev /dev

chmod 700 /root
# bash reads ~/.bashrc for a command over ssh: the machine's own would change the PATH.
rm -f /root/.bashrc /root/.bash_profile /root/.bash_login /root/.profile /root/.zshrc /root/.zshenv

# The daemon imports what a zpool.cache names: the machine's own must not be seen.
mkdir -p /etc/zfs /var/lib/zfs
mount -t tmpfs tmpfs /etc/zfs
mount -t tmpfs tmpfs /var/lib/zfs

while [ $# -gt 0 ]; do
    mkdir -p "$1"
    mount --bind "/run/node/$2" "$1"
    shift 2
done
: >>/etc/hosts
mount --bind /run/node/hosts /etc/hosts

# No name server is reachable from here; an empty file makes a lookup fail at once.
rm -f /etc/resolv.conf
: >/etc/resolv.conf
# sshd without PAM refuses an account that is locked by "!".
sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
echo "$name" >/proc/sys/kernel/hostname
echo ready
exec sleep infinity </dev/null >/dev/null 2>&1
