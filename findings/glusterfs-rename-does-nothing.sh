#!/usr/bin/env bash
# Versions: Debian's glusterfs-server and glusterfs-client 10.3-5, one brick, two FUSE mounts on one host, Python 3.
#
# Mount A makes P/x, and mount B renames it to L/x. A looks at L/x, then renames it back to P/x: rename(2) returns 0, and
# the file stays L/x, for every client and for good. A has P/x and L/x in its cache, both as the same file, and POSIX has
# a rename between two names of one file do nothing and succeed; so no rename is sent. Only looking shows it.
#
# Seen:
#     of 20 renames that returned 0, 20 did nothing
#
# Run as root; all happens in namespaces and an overlay of its own. Exits 1 where every rename did what it said.
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
import os
import sys

a, b = "/mnt/a", "/mnt/b"
for folder in ("P", "L"):
    os.mkdir(f"{a}/{folder}")
nothing = 0
for number in range(20):
    open(f"{a}/P/{number}", "w").close()
    os.rename(f"{b}/P/{number}", f"{b}/L/{number}")
    os.stat(f"{a}/L/{number}")
    os.rename(f"{a}/L/{number}", f"{a}/P/{number}")
    nothing += str(number) in os.listdir(f"{b}/L")
print(f"of 20 renames that returned 0, {nothing} did nothing")
sys.exit(0 if nothing else 1)
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
