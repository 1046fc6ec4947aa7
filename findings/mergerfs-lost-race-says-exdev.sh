#!/usr/bin/env bash
# Versions: Debian's mergerfs 2.33.5-1 (FUSE 3), Python 3.
#
# Two mergerfs mounts over the same two branches race to rename one file to different names. One of them wins, always.
# The loser is mostly told ENOENT, but now and then EXDEV ("Invalid cross-device link"), though source and target lie on
# one mount and one branch: who takes EXDEV for "copy instead of rename", as mv does, or for a wrong set-up, is wrong.
#
# Seen, of 3,000 races:
#     {'ENOENT, renamed': 2860, 'EXDEV, renamed': 140}
#
# Run as root. Exits 1 where no loser was told EXDEV, or a race had not exactly one winner.
set -euo pipefail
work=$(mktemp -d)
clean() {
    for side in a b; do mountpoint -q "$work/$side" && umount "$work/$side"; done
    rm -rf "$work"
}
trap clean EXIT

mkdir "$work"/{download,branch-1,branch-2,a,b}
cd "$work/download"
chmod 777 . "$work"
apt-get update -qq
apt-get download -qq mergerfs=2.33.5-1
dpkg -x mergerfs_*.deb "$work/installed"
for side in a b; do
    "$work/installed/usr/bin/mergerfs" "$work/branch-1:$work/branch-2" "$work/$side"
done

python3 - "$work/a" "$work/b" <<'PYTHON'
import errno
import os
import sys
import threading
from collections import Counter

mounts = sys.argv[1:]
for folder in ("source", "target"):
    os.mkdir(f"{mounts[0]}/{folder}")


def race(number: int) -> str:
    open(f"{mounts[0]}/source/{number}", "w").close()
    outcomes, start = [], threading.Barrier(2)

    def side(index: int) -> None:
        start.wait()
        try:
            os.rename(f"{mounts[index]}/source/{number}", f"{mounts[index]}/target/{number}.{index}")
            outcomes.append("renamed")
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno])

    threads = [threading.Thread(target=side, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ", ".join(sorted(outcomes))


found = Counter(race(number) for number in range(3000))
print(dict(found))
sys.exit(0 if found["EXDEV, renamed"] and all(outcome.count("renamed") == 1 for outcome in found) else 1)
PYTHON
