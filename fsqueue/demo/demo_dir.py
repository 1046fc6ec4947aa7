"""The directory that the demo's processes share, and the plan that they all read.

DIR/queue/           the sample refs, and the stream's members
DIR/ledger/          what was committed, and what was acknowledged at which step
DIR/options.json     what the run was asked for; there from the run's first moment
DIR/plan.json        what to produce: written last by `prepare`, so whoever reads it finds the rest in place
DIR/plan/            the chunks, and the target's frozen embedding and head
DIR/target/          the target model, converted once
DIR/features/        the feature store: hidden states, one file a chunk
DIR/checkpoints/     the draft head's training state
DIR/rendezvous/      where the trainers of one generation find each other
DIR/log/             one JSONL file and one stderr file a process
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from fsqueue.demo.options import DemoError, DemoOptions
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import current
from fsqueue.disk.publish import replace_file
from fsqueue.engine.layout import STATES
from fsqueue.format import names

_SUBDIRECTORIES = ("plan", "checkpoints", "rendezvous", "log")
_OPTIONS = "options.json"


class Plan(msgspec.Struct, frozen=True):
    """The plan that all workers follow.

    Attributes:
        target: the folder to load the target model from.
        target_version: what its weights are called.
        hidden_size: the target's, and so the draft's.
        options: the run's parameters.
    """

    target: str
    target_version: str
    hidden_size: int
    options: DemoOptions


class Sample(NamedTuple):
    """One chunk in one pass."""

    chunk: int
    pass_index: int

    @property
    def chunk_id(self) -> str:
        """The id that the chunk's features are stored under; all passes share them."""
        return f"chunk-{self.chunk:05d}"

    @property
    def sample_id(self) -> str:
        return f"{self.chunk_id}.pass-{self.pass_index}"


def samples_of_rollout(options: DemoOptions, index: int) -> Iterator[Sample]:
    """Yield a rollout's samples, in the order in which it puts them; every sample belongs to exactly one rollout."""
    for pass_index in range(options.passes):
        for chunk in range(index, options.samples, options.rollouts):
            yield Sample(chunk, pass_index)


def all_sample_ids(options: DemoOptions) -> list[str]:
    """List every sample's id; its place in this list is its place in the training state's counts."""
    return [Sample(chunk, number).sample_id for number in range(options.passes) for chunk in range(options.samples)]


def ids_by_state(queue_path: str) -> dict[str, set[str]]:
    """Collect the ids in each state, by one listing each.

    RACE: refs move while the directories are listed one after the other. One that moves forward is seen by a later
    listing, perhaps by both. One whose trainer dies moves back and can be missed; then it is pending or leased still.
    """
    found: dict[str, set[str]] = {}
    for state in STATES:
        parse = names.parse_leased if state == "leased" else names.parse_done
        parsed = map(parse, os.listdir(os.path.join(queue_path, state)))
        found[state] = {sample_id for it in parsed if it and (sample_id := names.id_of(it[0])) is not None}
    return found


class DemoDirectory:
    """Paths inside the shared directory."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.queue = self.at("queue")
        self.ledger = self.at("ledger")
        self.features = self.at("features")
        self.log = self.at("log")

    def at(self, *parts: str) -> str:
        return os.path.join(self.path, *parts)

    def create(self, options: DemoOptions) -> None:
        """Make the directory and its parts.

        Raises:
            DemoError: it exists and is not empty.
        """
        os.makedirs(self.path, exist_ok=True)
        if os.listdir(self.path):
            raise DemoError(
                f"{self.path} is not empty: name a directory that is missing or empty, or --resume the run in it"
            )
        for name in _SUBDIRECTORIES:
            os.mkdir(self.at(name))
        publish(self.at(_OPTIONS), msgspec.json.encode(options))

    def holds_a_run(self) -> bool:
        """Tell if a run was started here, whatever has become of it."""
        return os.path.exists(self.at(_OPTIONS))

    def read_options(self) -> DemoOptions:
        """Read the options that the run was started with.

        Raises:
            DemoError: there is no run here.
        """
        try:
            return msgspec.json.decode(Path(self.at(_OPTIONS)).read_bytes(), type=DemoOptions)
        except (FileNotFoundError, NotADirectoryError):
            raise DemoError(f"{self.path} holds no demo run: start one without --resume") from None

    def write_plan(self, plan: Plan) -> None:
        publish(self.at("plan.json"), msgspec.json.encode(plan))

    def read_plan(self) -> Plan | None:
        """Read the plan; None as long as it is not written."""
        with suppress(FileNotFoundError):
            return msgspec.json.decode(Path(self.at("plan.json")).read_bytes(), type=Plan)
        return None


class Parent:
    """The process that started this one; a worker does not outlive it."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid

    def check(self) -> None:
        """Exit where the parent is gone."""
        if self._pid is not None and os.getppid() != self._pid:
            raise SystemExit("the demo that started this process is gone")

    def sleep(self, seconds: float) -> None:
        self.check()
        time.sleep(seconds)

    def wait_for_plan(self, demo: DemoDirectory) -> Plan:
        while (plan := demo.read_plan()) is None:
            self.sleep(0.1)
        return plan


def publish(path: str, content: bytes) -> None:
    """Replace a file, durably, so that it is there whole or not at all. One writer a path."""
    folder, name = os.path.split(path)
    with closing(Directory(current(), folder)) as directory:
        replace_file(directory.ops, directory, name, content, durable=True)
