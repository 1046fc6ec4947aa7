#!/usr/bin/env bash
# Versions: Debian's bindfs 1.14.7-1, mergerfs 2.33.5-1 and gocryptfs 2.3-1+b4, kernel's FUSE, Python 3.
#
# Each filesystem is mounted twice over one folder. One process takes flock(LOCK_EX) on a file in the first mount, and
# asks for it on the same file in the second: it is granted at once, and to both. No error says that the lock is worth
# nothing: a FUSE filesystem that implements no flock gets one from the kernel, which excludes within the mount only.
#
# Seen:
#     bindfs: both mounts hold the exclusive lock
#     mergerfs: both mounts hold the exclusive lock
#     gocryptfs -sharedstorage: both mounts hold the exclusive lock
#
# Run as root. Exits 1 where one of them excludes.
set -euo pipefail
work=$(mktemp -d)
clean() {
    for point in "$work"/mounts/*; do mountpoint -q "$point" && umount "$point"; done
    rm -rf "$work"
}
trap clean EXIT

mkdir -p "$work"/{download,plain,cipher} "$work"/mounts/{bindfs,mergerfs,gocryptfs}-{1,2}
cd "$work/download"
chmod 777 . "$work"
apt-get update -qq
apt-get download -qq bindfs=1.14.7-1 mergerfs=2.33.5-1 gocryptfs=2.3-1+b4
for package in *.deb; do dpkg -x "$package" "$work/installed"; done
programs=$work/installed/usr/bin
echo a-passphrase > "$work/passphrase"
"$programs/gocryptfs" -q -init -scryptn 10 -passfile "$work/passphrase" "$work/cipher"
for side in 1 2; do
    "$programs/bindfs" "$work/plain" "$work/mounts/bindfs-$side"
    "$programs/mergerfs" "$work/plain" "$work/mounts/mergerfs-$side"
    "$programs/gocryptfs" -q -sharedstorage -passfile "$work/passphrase" \
        "$work/cipher" "$work/mounts/gocryptfs-$side" 2> "$work/gocryptfs.log"
done

python3 - "$work/mounts" <<'PYTHON'
import fcntl
import sys

mounts = sys.argv[1]
shared = False
for name in ("bindfs", "mergerfs", "gocryptfs"):
    first = open(f"{mounts}/{name}-1/lock", "w")
    fcntl.flock(first, fcntl.LOCK_EX)
    second = open(f"{mounts}/{name}-2/lock", "r+")
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        shared = True
        print(f"{name}: the second mount is refused")
    else:
        title = f"{name} -sharedstorage" if name == "gocryptfs" else name
        print(f"{title}: both mounts hold the exclusive lock")
sys.exit(1 if shared else 0)
PYTHON
