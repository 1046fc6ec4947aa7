#!/usr/bin/env bash
# Versions: Linux 6.18's XFS, made by Debian's xfsprogs 6.1.0-1, with its libraries libinih1 55-1 and liburcu8 0.13.2-1; Python 3.
#
# A rename between two directories of a full disk seems to need a block at most, for the directory that grows. XFS sets
# aside what the worst split of the directory's tree could take: a rename, and as well a link or a mkdir, is refused
# (ENOSPC) while statvfs shows dozens of blocks free, and a program that keeps "a few" blocks for such a moment has too few.
#
# Here a full file system is given back block after block, until renames into a directory of long names work.
#
# Seen:
#     refused with 5 to 62 blocks of 4096 bytes free
#
# Run as root. Exits 1 where no rename was refused with 16 blocks free or more.
set -euo pipefail
work=$(mktemp -d)
clean() {
    mountpoint -q "$work/disk" && umount "$work/disk"
    rm -rf "$work"
}
trap clean EXIT

mkdir "$work"/{download,disk}
cd "$work/download"
chmod 777 . "$work"
apt-get update -qq
apt-get download -qq xfsprogs=6.1.0-1 libinih1=55-1 liburcu8=0.13.2-1
for package in *.deb; do dpkg -x "$package" "$work/installed"; done
truncate -s 400M "$work/image"
LD_LIBRARY_PATH=$(echo "$work"/installed/usr/lib/*-linux-gnu) "$work"/installed/sbin/mkfs.xfs -q "$work/image"
mount -o loop "$work/image" "$work/disk"

python3 - "$work/disk" <<'PYTHON'
import errno
import os
import sys

disk = sys.argv[1]
names = [f"{number:04d}" + "x" * 200 for number in range(1000)]
for folder in ("from", "to"):
    os.mkdir(f"{disk}/{folder}")
for name in names:
    open(f"{disk}/from/{name}", "w").close()
with open(f"{disk}/ballast", "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(b"x" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    os.fsync(ballast.fileno())
size, refused = os.stat(f"{disk}/ballast").st_size, []
while names:
    try:
        os.rename(f"{disk}/from/{names[-1]}", f"{disk}/to/{names[-1]}")
        names.pop()
    except OSError as error:
        assert error.errno == errno.ENOSPC
        refused.append(os.statvfs(disk).f_bavail)
        size -= 4096
        os.truncate(f"{disk}/ballast", size)
        os.sync()
print(f"refused with {min(refused, default=0)} to {max(refused, default=0)} blocks of 4096 bytes free")
sys.exit(0 if max(refused, default=0) >= 16 else 1)
PYTHON
