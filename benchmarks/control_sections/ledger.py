"""The ledger's section: transactions a second against SQLite, opening it again, and reconciling a large one."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import Any

from against_sqlite.ledger import PlainSqliteMetadataStore, SqliteMetadataStore
from control_sections.section import Findings, Options, Row
from fsqueue import FeatureSpec, FileSampleRefQueue, SampleRef
from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore

BATCHES = (1, 64)
AT_LEAST = {1: 1.0, 64: 3.0}
Ledger = FileMetadataStore[SampleRef]
RECONCILE_LIMIT_S = 10.0
OPEN_LIMIT_S = 5.0


def sample(sample_id: str) -> SampleRef:
    """A ref of the size that a rollout writes."""
    keys = ("input_ids", "loss_mask", "hidden_state", "aux_hidden_state")
    return SampleRef(
        sample_id,
        run_id="bench",
        source_task_id=f"task-{sample_id}",
        feature_store_uri=f"file:///shared/features/{sample_id}",
        feature_keys={key: f"{sample_id}/{key}" for key in keys},
        feature_specs={key: FeatureSpec(key, (1, 2048, 4096), "bfloat16") for key in keys},
        strategy="eagle3",
        num_tokens=2048,
        estimated_bytes=1 << 24,
    )


def transactions(options: Options) -> Findings:
    """Commits and acknowledgements a second, durably, the ledgers in turn within each round."""
    findings = Findings("ledger: samples a second, one process, durable")
    rounds, slice_s = (1, 0.02) if options.quick else (15, 0.6)
    ledgers: dict[str, Any] = {
        "file": Ledger(os.path.join(options.directory, "ledger")),
        "sqlite": PlainSqliteMetadataStore(os.path.join(options.directory, "ledger.db")),
        "sqlite-batched": SqliteMetadataStore(os.path.join(options.directory, "batched.db")),
    }
    ids = (f"sample-{number:09d}" for number in range(1 << 40))
    counted: list[str] = []
    for batch in BATCHES:
        rates: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds):
            order = [*ledgers][number % 3 :] + [*ledgers][: number % 3]
            for key, rate in _round({kind: ledgers[kind] for kind in order}, ids, counted, batch, slice_s).items():
                rates.setdefault(key, []).append(rate)
        for step in ("commit", "ack"):
            findings.rows.append(_row(step, batch, rates, findings))
    for kind, store in ledgers.items():
        found = store.durable_marker()["acked"]
        if store.committed_count() != len(counted) or found != set(counted):
            findings.faults.append(f"the {kind} ledger does not hold what was recorded")
        store.close()
    return findings


def _round(
    ledgers: dict[str, Any], ids: Iterator[str], counted: list[str], batch: int, slice_s: float
) -> dict[tuple[str, str], float]:
    """Samples a second of commits, and of acknowledging the same samples in the same batches.

    The ledgers take turns transaction by transaction, so that what else the disk does meets all alike.
    """
    spent_s: dict[tuple[str, str], float] = defaultdict(float)
    batches: list[list[str]] = []
    while sum(spent_s.values()) < slice_s:
        refs = [sample(sample_id) for sample_id, _ in zip(ids, range(batch), strict=False)]
        batches.append([ref.sample_id for ref in refs])
        for kind, store in ledgers.items():
            started = time.perf_counter()
            store.commit_samples(refs)
            spent_s["commit", kind] += time.perf_counter() - started
    for step, acked in enumerate(batches):
        for kind, store in ledgers.items():
            started = time.perf_counter()
            store.record_train_ack(acked, global_step=step, optimizer_durable=True)
            spent_s["ack", kind] += time.perf_counter() - started
    counted += [sample_id for acked in batches for sample_id in acked]
    return {key: batch * len(batches) / seconds for key, seconds in spent_s.items()}


def _row(step: str, batch: int, rates: dict[tuple[str, str], list[float]], findings: Findings) -> Row:
    ours = rates[step, "file"]
    row: Row = {"step": step, "batch": batch, "file": median(ours)}
    for other in ("sqlite", "sqlite-batched"):
        theirs = rates[step, other]
        row[other] = median(theirs)
        row[f"x {other}"] = median(a / b for a, b in zip(ours, theirs, strict=True))
    wanted, reached = AT_LEAST[batch], row["x sqlite"]
    findings.targets.append(
        (f"{step}s in batches of {batch}: {reached:.2f} x sqlite (>= {wanted:g})", reached >= wanted)
    )
    return row


def opening(options: Options) -> Findings:
    """Opening a ledger of many committed ids, half of them acknowledged, one commit a sample."""
    count = 2_000 if options.quick else 1_000_000
    findings = Findings(f"ledger: opening {count:,} committed ids")
    path = os.path.join(options.directory, "large")
    ids = [f"sample-{number:09d}" for number in range(count)]
    with Ledger(path, durable=False) as store:
        for start in range(0, count, 10_000):
            store.commit_samples(map(sample, ids[start : start + 10_000]))
        store.record_train_ack(ids[::2], global_step=1)
    started = time.perf_counter()
    with Ledger(path) as store:
        opened_s = time.perf_counter() - started
        started = time.perf_counter()
        known = sum(map(store.is_committed, ids))
        look_us = (time.perf_counter() - started) / count * 1e6
        if known != count or store.progress()[0] != len(ids[::2]):
            findings.faults.append("the ledger that was opened again does not hold what was recorded")
    size = sum(entry.stat().st_size for entry in os.scandir(path)) / 1e6
    findings.rows.append({"open s": opened_s, "is_committed us": look_us, "size MB": size})
    findings.targets.append((f"opened in {opened_s:.2f} s (<= {OPEN_LIMIT_S:g})", opened_s <= OPEN_LIMIT_S))
    return findings


def reconciling(options: Options) -> Findings:
    """Reconciling a large ledger: with all refs in the queue, and with every tenth put missing or ack unsettled."""
    count = 1_000 if options.quick else 100_000
    findings = Findings(f"controller: reconciling {count:,} committed refs")
    ids = [f"sample-{number:09d}" for number in range(count)]
    queue: FileSampleRefQueue[Any] = FileSampleRefQueue(os.path.join(options.directory, "queue"), durable=False)
    with queue, Ledger(os.path.join(options.directory, "reconciled"), durable=False) as store:
        for start in range(0, count, 10_000):
            refs = [sample(sample_id) for sample_id in ids[start : start + 10_000]]
            store.commit_samples(refs)
            queue.put([ref for number, ref in enumerate(refs) if number % 10])
        store.record_train_ack(ids[5::10], global_step=3, optimizer_durable=True)
    with (
        FileSampleRefQueue(os.path.join(options.directory, "queue")) as opened,
        Ledger(os.path.join(options.directory, "reconciled")) as store,
    ):
        controller: DataFlowController[Any] = DataFlowController("bench", sample_queue=opened, metadata_store=store)
        for what in ("a tenth missing, a tenth acknowledged", "nothing to do"):
            started = time.perf_counter()
            report = controller.reconcile_on_restart()
            took_s = time.perf_counter() - started
            findings.rows.append({"state": what, "s": took_s})
            findings.targets.append((f"{what}: {took_s:.2f} s (<= {RECONCILE_LIMIT_S:g})", took_s <= RECONCILE_LIMIT_S))
            if set(report["released"]) != set(ids[5::10]) or len(report["requeued"]) != count - len(ids[5::10]):
                findings.faults.append("the report is not what was recorded")
            if opened.depth() != count - len(ids[5::10]):
                findings.faults.append("the queue does not hold every other sample once")
    return findings
