"""Count what a run came to, from the workers' journals and the queue's directories."""

from __future__ import annotations

from collections import Counter, defaultdict

from fsqueue.control.ledger import FileMetadataStore
from fsqueue.demo.demo_dir import DemoDirectory, Plan, ids_by_state
from fsqueue.demo.journal import JournalEvent
from fsqueue.demo.options import DemoReport, Kill, Preemption, RankStats, RolloutStats
from fsqueue.records import SampleRef


class Totals:
    """Adds up events.

    Attributes:
        put: sample id to how often a rollout put it.
        known: worker to the ids that it committed, or found committed after a restart.
        delivered: sample id to how often a trainer leased it.
        held: worker to the ids that it leases and has not settled.
        acked_by: sample id to the worker that acked it last.
        surviving: sample id to how often it is in the last checkpoint that was evaluated.
        losses: step to the loss over all ranks, where a step was taken again, of the last time.
        last_loss: worker to the loss of its own refs at its latest step.
        acceptance: worker to the acceptance that it measured.
    """

    def __init__(self) -> None:
        self.put: Counter[str] = Counter()
        self.known: defaultdict[str, set[str]] = defaultdict(set)
        self.delivered: Counter[str] = Counter()
        self.acked_by: dict[str, str] = {}
        self.surviving: Counter[str] = Counter()
        self.held: defaultdict[str, set[str]] = defaultdict(set)
        self.losses: dict[int, float] = {}
        self.last_loss: dict[str, float] = {}
        self.acceptance: dict[str, float] = {}
        self.digests: dict[str, str] = {}
        self.first_put_at: float | None = None
        self.last_ack_at = 0.0
        self._by_worker: defaultdict[str, Counter[str]] = defaultdict(Counter)

    @property
    def all_known(self) -> set[str]:
        """The ids that rollouts put."""
        return set().union(*self.known.values())

    @property
    def step(self) -> int:
        return max(self.losses, default=0)

    def count(self, worker: str, kind: str) -> int:
        """Count a worker's events of a kind, in all its starts; ids where the kind has them."""
        return self._by_worker[worker][kind]

    def add(self, event: JournalEvent) -> None:
        self._by_worker[event.worker][event.kind] += len(event.ids) if event.kind in _BY_ID else 1
        if event.kind in ("put", "found"):
            self._add_put(event)
        elif event.kind == "delivered":
            self.delivered.update(event.ids)
            self.held[event.worker].update(event.ids)
        elif event.kind in ("acked", "failed", "lease_lost"):
            self.held[event.worker].difference_update(event.ids)
            if event.kind == "acked":
                self.acked_by.update(dict.fromkeys(event.ids, event.worker))
                self.last_ack_at = max(self.last_ack_at, event.at)
        elif event.kind == "started":
            self.held[event.worker].clear()
        elif event.kind == "step" and event.global_loss is not None:
            self.losses[event.step] = event.global_loss
            if event.loss is not None:
                self.last_loss[event.worker] = event.loss
        elif event.kind == "acceptance" and event.value is not None:
            self.acceptance[event.worker] = event.value
        elif event.kind == "surviving":
            self.surviving = Counter(event.ids)
            self.losses = {step: loss for step, loss in self.losses.items() if step <= event.step}
        elif event.kind == "finished" and event.note:
            self.digests[event.worker] = event.note

    def _add_put(self, event: JournalEvent) -> None:
        self.known[event.worker].update(event.ids)
        if event.kind == "put":
            self.put.update(event.ids)
            self.first_put_at = min(self.first_put_at or event.at, event.at)

    def samples_per_s(self, done: int, now: float) -> float:
        """Return the refs trained a second, since the first put."""
        elapsed_s = now - self.first_put_at if self.first_put_at is not None else 0.0
        return done / elapsed_s if elapsed_s > 0 else 0.0

    def mean_loss(self, *, last: bool) -> float | None:
        """Return the mean over the first or the last few steps."""
        steps = sorted(self.losses)
        few = max(1, min(5, len(steps) // 4))
        chosen = steps[-few:] if last else steps[:few]
        return sum(self.losses[step] for step in chosen) / len(chosen) if chosen else None


_BY_ID = frozenset({"put", "delivered", "acked", "failed", "lease_lost", "rewound"})


def make_report(
    demo: DemoDirectory,
    plan: Plan,
    totals: Totals,
    *,
    kills: list[Kill],
    preemptions: list[Preemption],
    seconds: float,
    violations: int,
) -> DemoReport:
    """Make the final figures; the ledger and the queue's directories are read once more for them."""
    options = plan.options
    with FileMetadataStore[SampleRef](demo.ledger) as store:
        committed = store.all_committed_ids()
    states = ids_by_state(demo.queue)
    done = states["done"]
    times = [totals.surviving[sample_id] for sample_id in committed]
    digests = {totals.digests.get(f"trainer-{rank}") for rank in range(options.trainers)}
    return DemoReport(
        directory=demo.path,
        target=plan.target_version,
        samples=options.samples,
        passes=options.passes,
        starts=totals.count("supervisor", "started"),
        put=len(committed),
        put_twice=sum(times > 1 for times in totals.put.values()),
        trained=len(done),
        failed=len(states["failed"]),
        delivered_twice=sum(times > 1 for times in totals.delivered.values()),
        taken_back=sum(totals.count(f"trainer-{rank}", "rewound") for rank in range(options.trainers)),
        once=times.count(1),
        twice=sum(number > 1 for number in times),
        never=times.count(0),
        lost=len(set(committed) - set().union(*states.values())),
        steps=totals.step,
        loss_first=totals.mean_loss(last=False),
        loss_last=totals.mean_loss(last=True),
        acceptance_before=totals.acceptance["prepare"],
        acceptance_after=totals.acceptance["evaluate"],
        seconds=seconds,
        samples_per_s=totals.samples_per_s(len(done), totals.last_ack_at),
        kills=kills,
        preemptions=preemptions,
        ranks=[_rank(totals, rank, done) for rank in range(options.trainers)],
        rollouts=[_rollout(totals, index) for index in range(options.rollouts)],
        ranks_agree=len(digests) == 1 and None not in digests,
        check_violations=violations,
    )


def _rank(totals: Totals, rank: int, done: set[str]) -> RankStats:
    name = f"trainer-{rank}"
    deliveries, steps, starts = (totals.count(name, kind) for kind in ("delivered", "step", "started"))
    trained = sum(totals.acked_by.get(sample_id) == name for sample_id in done)
    return RankStats(rank, deliveries, trained, steps, totals.last_loss.get(name), starts)


def _rollout(totals: Totals, index: int) -> RolloutStats:
    name = f"rollout-{index}"
    return RolloutStats(index, len(totals.known[name]), totals.count(name, "paused"), totals.count(name, "started"))
