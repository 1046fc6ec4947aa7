"""The calls of a stream, and those that go through all of a queue, that the sweep interrupts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsqueue import SampleRef, StreamStalledError, TrainerView
from tests.support import names_in, numbered
from tests.sweeps.proof.interrupted import QUICK, Call, Scene

STEP = 7


class StreamScene(Scene):
    """Hold besides what the caller has of the stream.

    Attributes:
        view: the handle's, once its making has returned.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.view: TrainerView[SampleRef] | None = None

    def put_when_below(self, refs: list[SampleRef], **limits: Any) -> None:
        self.unsure |= {each.sample_id for each in refs}
        with suppress(StreamStalledError):
            self.queue.put_when_below(refs, **limits)
            self.sure |= {each.sample_id for each in refs}

    def make_view(self) -> None:
        self.view = TrainerView(self.queue, batch=2)

    def put_and_view(self) -> None:
        self.put(self.batch)
        self.make_view()

    def make_view_in_window(self) -> None:
        """Have a window of two batches open, the first of which was handed out."""
        self.put(self.batch)
        self.view = TrainerView(self.queue, window=2)
        self.get_batch()

    def make_view_before_its_rest(self) -> None:
        """Have a view whose next get finds the end of the stream, and a rest to settle."""
        with self.queue.producer("p"):
            self.put(self.batch)
        self.view = TrainerView(self.queue, batch=4, rest="ack")

    def make_view_that_sifts(self) -> None:
        self.put(self.batch)
        refused = self.batch[0].sample_id
        self.view = TrainerView(self.queue, batch=2, max_age_s=1e9, accept=lambda ref: ref.sample_id != refused)

    def get_batch(self) -> None:
        assert self.view is not None
        self.owned |= {each.sample_id: each for each in self.view.get()}

    def get_and_view(self) -> None:
        self.put_and_view()
        self.get_batch()

    def close_view(self) -> None:
        assert self.view is not None
        self.view.close()

    def with_view(self, act: Callable[[TrainerView[SampleRef]], object]) -> None:
        assert self.view is not None
        act(self.view)

    def put_and_ack(self) -> None:
        self.put_and_get()
        self.queue.ack(self.batch, step=STEP)

    def take_part(self) -> None:
        with self.queue.producer("p"):
            pass

    def take_part_in_vain(self) -> None:
        with suppress(ValueError), self.queue.producer("p"):
            raise ValueError

    def settle(self) -> None:
        """Let the view go, as its block would have, and bring back what pack has put away."""
        if self.view is not None:
            self.view.close()
        held = [each.name for each in (self.path / "stream").glob("*@open.json")]
        assert held == [], f"members that live for ever: {held}"
        if any("packed" in name or name.startswith("segment") for name in names_in(self.path, "done")):
            self.queue.rewind(after_step=0)


def _consume(scene: StreamScene) -> None:
    scene.put(numbered(3, "n"))
    scene.queue.publish_quantum(dp_size=1, batch_size=1)


STREAM_CALLS: dict[str, Call] = {
    "put_when_below": Call(lambda s: s.put_when_below(s.batch, high=8), lambda s: None, QUICK),
    "put_when_below at the watermark": Call(
        lambda s: s.put_when_below(s.batch, high=2, low=1, timeout_s=0.01), _consume, QUICK
    ),
    "taking part": Call(StreamScene.take_part, lambda s: None, QUICK),
    "taking part in vain": Call(StreamScene.take_part_in_vain, lambda s: None, QUICK),
    "making a view": Call(StreamScene.make_view, lambda s: None, QUICK),
    "a view's batch": Call(StreamScene.get_batch, StreamScene.put_and_view, QUICK),
    "a view's batch, sifted": Call(StreamScene.get_batch, StreamScene.make_view_that_sifts, QUICK),
    "a view's next batch": Call(StreamScene.get_batch, StreamScene.make_view_in_window, QUICK),
    "a view's rest": Call(StreamScene.get_batch, StreamScene.make_view_before_its_rest, QUICK),
    "a view's ack": Call(
        lambda s: s.with_view(lambda view: view.ack(list(s.owned.values()))), StreamScene.get_and_view, QUICK
    ),
    "a view's release": Call(
        lambda s: s.with_view(lambda view: view.release(list(s.owned.values()))), StreamScene.get_and_view, QUICK
    ),
    "closing a view": Call(StreamScene.close_view, StreamScene.get_and_view, QUICK),
    "drained": Call(lambda s: s.queue.drained(), StreamScene.take_part, QUICK),
    "publish_quantum": Call(lambda s: s.queue.publish_quantum(dp_size=1, batch_size=2), lambda s: None, QUICK),
    "pack": Call(lambda s: s.queue.pack(older_than_s=-1e9), StreamScene.put_and_ack, QUICK),
    "rewind": Call(lambda s: s.queue.rewind(after_step=1), StreamScene.put_and_ack, QUICK),
}
