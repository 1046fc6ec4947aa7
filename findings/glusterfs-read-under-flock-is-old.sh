#!/usr/bin/env bash
# Versions: Debian's glusterfs-server and glusterfs-client 10.3-5, one brick, two FUSE mounts on one host, Python 3.
#
# Two mounts lock a file by turns, and each adds 1 to the number in it. flock has one holder at a time, and every turn opens
# the file anew, once the lock is granted, and closes it before the unlock: what NFS calls close-to-open. Still the number
# that is read may be the one from before the other mount's turn. It takes both ends: the writer's fsync before its
# unlock, and the reader's posix_fadvise(DONTNEED) before its read.
#
# Seen, of 299 turns that follow another one:
#     opened in the turn: 150 old numbers
#     and told to forget its pages, and synced by the writer: 0 old numbers
#
# Run as root; all happens in namespaces and an overlay of its own. Exits 1 where the first number is 0, or the second is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work"/{upper,overlay,root,brick}

cat > "$work/inside.sh" <<'INSIDE'
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
rm -rf /var/lib/glusterd/*
echo "10.77.0.1 $(hostname)" >> /etc/hosts
glusterd
until gluster pool list > /dev/null 2>&1; do sleep 0.5; done
gluster --mode=script volume create shared 10.77.0.1:/mnt/brick force > /dev/null
gluster --mode=script volume start shared > /dev/null
for side in a b; do mount -t glusterfs 10.77.0.1:/shared /mnt/$side; done
python3 - <<'PYTHON'
import fcntl
import os
import sys

paths = ["/mnt/a/number", "/mnt/b/number"]
with open(paths[0], "wb") as file:
    file.write(b"%08d" % 0)


def old_numbers(carefully: bool) -> int:
    locks = [os.open(path, os.O_RDWR) for path in paths]
    written, old = None, 0
    for turn in range(300):
        fcntl.flock(locks[turn % 2], fcntl.LOCK_EX)
        data = os.open(paths[turn % 2], os.O_RDWR)
        if carefully:
            os.posix_fadvise(data, 0, 0, os.POSIX_FADV_DONTNEED)
        number = int(os.pread(data, 8, 0))
        old += written is not None and number != written
        written = number + 1
        os.pwrite(data, b"%08d" % written, 0)
        if carefully:
            os.fsync(data)
        os.close(data)
        fcntl.flock(locks[turn % 2], fcntl.LOCK_UN)
    for lock in locks:
        os.close(lock)
    return old


plain, careful = old_numbers(False), old_numbers(True)
print(f"opened in the turn: {plain} old numbers")
print(f"and told to forget its pages, and synced by the writer: {careful} old numbers")
sys.exit(0 if plain and not careful else 1)
PYTHON
INSIDE

cat > "$work/outside.sh" <<'OUTSIDE'
set -euo pipefail
work=$1
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/overlay" "$work/root"
mkdir -p "$work"/root/mnt/{brick,a,b}
cp "$work/inside.sh" "$work/root/mnt/inside.sh"
mount --bind "$work/brick" "$work/root/mnt/brick"
mount --rbind /dev "$work/root/dev"
mount -t proc proc "$work/root/proc"
chroot "$work/root" apt-get update -qq
chroot "$work/root" env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
    glusterfs-server=10.3-5 glusterfs-client=10.3-5 > "$work/install.log" 2>&1
exec unshare --net --pid --fork --mount-proc="$work/root/proc" --kill-child \
    sh -c "ip link set lo up && ip addr add 10.77.0.1/32 dev lo && chroot '$work/root' bash /mnt/inside.sh"
OUTSIDE

unshare --mount bash "$work/outside.sh" "$work"
