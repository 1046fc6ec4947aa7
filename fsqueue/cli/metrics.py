"""`fsqueue metrics`: export queues to Prometheus."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import click

from fsqueue.cli.arguments import VARIABLE, as_json
from fsqueue.cli.output import many_json, remark, require_replaceable
from fsqueue.errors import install_command

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from fsqueue.operate.metrics import Exporter


@click.command(epilog="Example:  fsqueue metrics /shared/queue --listen 127.0.0.1:9432")
@click.argument("queues", metavar="[QUEUE]...", nargs=-1, type=click.Path())
@click.option("--textfile", metavar="PATH", help="Write them there, for node_exporter; the file is replaced at once.")
@click.option("--listen", metavar="HOST:PORT", help="Serve them at /metrics until stopped.")
@as_json
@click.pass_context
def metrics(
    ctx: click.Context, queues: tuple[str, ...], textfile: str | None, listen: str | None, as_json: bool
) -> None:
    """Print counts, ages, dead letters by reason, owners and members of queues as OpenMetrics text.

    Takes no lock and writes nothing in a queue; on some shared mounts it touches order.lock, to read the time. A queue
    that cannot be looked at has fsqueue_up 0, and the command, unless it listens, exits with 1. Rates are for
    Prometheus to compute. Rules and a dashboard lie in fsqueue/recipes/.
    """
    queues = queues or tuple(filter(None, [os.environ.get(VARIABLE)]))
    if not queues:
        raise click.UsageError(f"Missing argument QUEUE. Name queues as arguments, or one in ${VARIABLE}.")
    if (textfile is not None) + (listen is not None) + as_json > 1:
        raise click.UsageError("Give --textfile, --listen or --json, not both.")
    if textfile is not None:
        require_replaceable(textfile, "leave --textfile out")
    exporter, registry = _made(queues)
    if listen is not None:
        _serve(registry, listen)
        return
    if as_json:
        _print_json(registry)
    else:
        _print(registry, textfile)
    for path, error in exporter.errors.items():
        remark(f"{path}: {error}")
    ctx.exit(1 if exporter.errors else 0)


def _made(queues: tuple[str, ...]) -> tuple[Exporter, CollectorRegistry]:
    try:
        from prometheus_client import CollectorRegistry

        from fsqueue.operate.metrics import Exporter
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise click.ClickException(f"prometheus-client is not installed: {install_command('metrics')}") from None
    exporter, registry = Exporter(queues), CollectorRegistry()
    registry.register(exporter)
    return exporter, registry


def _print(registry: CollectorRegistry, textfile: str | None) -> None:
    from prometheus_client import write_to_textfile
    from prometheus_client.openmetrics.exposition import generate_latest

    if textfile is None:
        text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
        click.echo(text.decode(), nl=False)
        return
    try:
        write_to_textfile(textfile, registry)
    except OSError as error:
        raise click.ClickException(f"cannot write {textfile}: {error.strerror}") from None


def _print_json(registry: CollectorRegistry) -> None:
    samples = (sample for family in registry.collect() for sample in family.samples)
    many_json({"name": each.name, "labels": each.labels, "value": each.value} for each in samples)


def _serve(registry: CollectorRegistry, listen: str) -> None:
    from prometheus_client import start_http_server

    host, _, port = listen.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{listen!r} is no HOST:PORT, such as 127.0.0.1:9432", param_hint="--listen")
    try:
        server, _ = start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen}: {error.strerror}") from None
    remark(f"serving http://{host or '127.0.0.1'}:{server.server_port}/metrics; Ctrl-C stops it")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        while not stopped.wait(1.0):
            pass
    finally:
        server.shutdown()
