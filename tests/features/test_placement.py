"""Where a batch's tensors go. What takes a GPU runs where there is one; the rest is the host's path."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fsqueue.errors import InvalidArgumentError
from fsqueue.features.placement import Placement, each_tensor
from tests.support.features import tensors
from tests.support.loading import PREFETCH, Site, all_ids, ids_of

Pair = namedtuple("Pair", "x y")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cpu:0"], ids=str)
def test_the_host_is_a_device_too(site: Callable[..., Site], prefetch: int, device: Any) -> None:
    """With the host as the device, batches are what they are without one, so that a script runs on both."""
    here = site()
    for number, batch in enumerate(here.loader(device=device, prefetch=prefetch)):
        assert batch.features["hidden"].device.type == "cpu"
        assert torch.equal(batch.features["tokens"][1], tensors(4 * number + 1)["tokens"])
    assert here.queue.counts() == (0, 0, 12, 0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "cudaa"}, "device=.*a device such as 'cuda'.*'cudaa'"),
        ({"device": 1.5}, "device=.*a device such as"),
        ({"device": "meta"}, "device=.*another device than one of type meta"),
        ({"device": "cpu:3"}, "device=.*one of the 1 devices of type cpu.*'cpu:3'"),
        pytest.param({"device": "cuda"}, "device=.*another device than one of type cuda", marks=without_gpu),
        pytest.param({"device": "cuda:1"}, "device=.*of type cuda", marks=without_gpu),
        pytest.param({"pin_memory": True}, "pin_memory=.*torch finds no accelerator", marks=without_gpu),
        ({"pin_memory": "yes"}, "pin_memory=.*True or False.*'yes'"),
    ],
    ids=str,
)
def test_places_that_are_not_there(site: Callable[..., Site], options: dict[str, Any], told: str) -> None:
    """A device that torch does not know, or does not find, is refused when the loader is made, and nothing leased."""
    here = site()
    with pytest.raises(InvalidArgumentError, match=told):
        here.loader(**options)
    assert here.queue.counts() == (12, 0, 0, 0)


def test_which_tensors_of_a_batch_are_placed() -> None:
    """All that lie in dicts, lists and tuples, however deep; what else a collate returns stays as it is."""
    one, other = torch.zeros(1), object()
    batch = OrderedDict(a=one, b=[one, "text", (one, 3)], c=Pair(one, other), d={"e": {"f": one}}, g=other)
    changed = each_tensor(batch, lambda tensor: tensor + 1)
    assert type(changed) is OrderedDict and list(changed) == list(batch) and type(changed["c"]) is Pair
    assert changed["g"] is other and changed["c"].y is other and changed["b"][1] == "text" and changed["b"][2][1] == 3
    moved = [changed["a"], changed["b"][0], changed["b"][2][0], changed["c"].x, changed["d"]["e"]["f"]]
    assert all(float(tensor) == 1 for tensor in moved) and float(one) == 0


@needs_gpu
@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("pin_memory", [None, False])
@pytest.mark.parametrize("own_collate", [False, True])
def test_batches_on_a_gpu(site: Callable[..., Site], prefetch: int, pin_memory: bool | None, own_collate: bool) -> None:
    """Each batch is on the device, whole, when it comes, also while earlier ones are still being computed with."""
    here = site(samples=64)
    collate = (lambda samples: {name: [s[name] for s in samples] for name in samples[0]}) if own_collate else None
    busy = torch.randn(2048, 2048, device="cuda")
    sums = []
    seen = []
    for batch in here.loader(device="cuda", prefetch=prefetch, pin_memory=pin_memory, collate=collate):
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        hidden = batch.features["hidden"]
        hidden = torch.stack(hidden) if own_collate else hidden
        assert hidden.is_cuda
        sums.append(hidden.sum(dim=(1, 2)))
        seen += batch.ids
        del batch, hidden
    assert seen == ids_of(here.refs)
    expected = [float(tensors(number)["hidden"].sum()) for number in range(64)]
    assert torch.cat(sums).tolist() == expected


@needs_gpu
def test_pinned_batches_on_the_host(site: Callable[..., Site]) -> None:
    here = site()
    assert all(batch.features["hidden"].is_pinned() for batch in here.loader(pin_memory=True, prefetch=1))


@needs_gpu
def test_a_copy_stream_is_made_once() -> None:
    placement = Placement("cuda", None)
    placement.prepare()
    stream = placement._stream
    placement.prepare()
    assert placement._stream is stream and placement._device == torch.device("cuda", torch.cuda.current_device())


def test_a_loader_that_places_nothing_acknowledges_as_before(site: Callable[..., Site]) -> None:
    here = site()
    assert all_ids(here.loader(pin_memory=False)) == ids_of(here.refs)
    assert here.queue.counts() == (0, 0, 12, 0)
