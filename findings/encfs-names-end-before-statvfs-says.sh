#!/usr/bin/env bash
# Versions: Debian's encfs 1.9.5-2 in its standard configuration, over ext4, Python 3.
#
# statvfs(2), and with it pathconf(_PC_NAME_MAX), says how long a name may be. encfs passes on a number that it has
# worked out from the filesystem below, and refuses names that are shorter: whoever plans names by it finds out late.
#
# Seen:
#     statvfs says 189 bytes; the longest name that can be made has 175
#
# Run as root. Exits 1 where a name of the length that statvfs says can be made.
set -euo pipefail
work=$(mktemp -d)
clean() {
    mountpoint -q "$work/plain" && umount "$work/plain"
    rm -rf "$work"
}
trap clean EXIT

mkdir "$work"/{download,cipher,plain}
cd "$work/download"
chmod 777 . "$work"
apt-get update -qq
apt-get download -qq encfs=1.9.5-2 libfuse2 libtinyxml2-9
for package in *.deb; do dpkg -x "$package" "$work/installed"; done
export LD_LIBRARY_PATH=$work/installed/usr/lib/x86_64-linux-gnu:$work/installed/lib/x86_64-linux-gnu
"$work/installed/usr/bin/encfs" --standard --extpass="echo a-passphrase" "$work/cipher" "$work/plain" > "$work/log"

python3 - "$work/plain" <<'PYTHON'
import os
import sys

folder = sys.argv[1]


def can_make(length: int) -> bool:
    try:
        os.mkdir(f"{folder}/{'n' * length}")
    except OSError:
        return False
    os.rmdir(f"{folder}/{'n' * length}")
    return True


said = os.statvfs(folder).f_namemax
longest = max(filter(can_make, range(1, 256)))
print(f"statvfs says {said} bytes; the longest name that can be made has {longest}")
sys.exit(0 if longest < said else 1)
PYTHON
