"""Memory that is lent for tensors: it comes back when the last of them is gone, and is never two tensors' at once."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fsqueue.features.buffers import Buffers
from fsqueue.features.tensorfile import STORABLE

MIB = 1 << 20


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", sorted(STORABLE, key=str), ids=str)
def test_a_tensor_of_any_type(dtype: torch.dtype) -> None:
    """It has shape and type, and can be written and read; so has a small one, and one without elements."""
    for shape in ((3, MIB), (3, 5), (0, 4), ()):
        tensor = Buffers().empty(shape, dtype)
        assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
        tensor.copy_(torch.ones(shape).to(dtype))
        assert torch.equal(tensor, torch.ones(shape).to(dtype))


def test_memory_is_used_again_once_no_tensor_is_left_in_it() -> None:
    """A view keeps it; then the next tensor that is hardly smaller has it, and a much smaller one does not."""
    buffers = Buffers()
    first = buffers.empty((8 * MIB,), torch.uint8)
    place, view = address(first), first[5:7]
    del first
    assert address(buffers.empty((8 * MIB,), torch.uint8)) != place
    del view
    much_smaller = buffers.empty((5 * MIB,), torch.uint8)
    assert address(much_smaller) != place
    assert address(buffers.empty((15, MIB // 4), torch.float16)) == place


def test_only_so_much_is_kept_free() -> None:
    """More than that goes back to the kernel, and so does what is free when other memory is needed."""
    buffers = Buffers(10 * MIB)
    held = [buffers.empty((4 * MIB,), torch.uint8) for _ in range(4)]
    held.clear()
    assert sorted(map(len, buffers._free)) == [4 * MIB] * 2
    held.append(buffers.empty((3 * MIB,), torch.uint8))
    assert list(map(len, buffers._free)) == [4 * MIB]
    held.append(buffers.empty((20 * MIB,), torch.uint8))
    held.clear()
    assert list(map(len, buffers._free)) == [3 * MIB]


def test_threads_never_share_memory() -> None:
    """Each of eight threads finds in its tensors what it wrote, while they come and go in all of them."""
    buffers = Buffers()

    def work(number: int) -> None:
        chance, held = random.Random(number), deque[tuple[torch.Tensor, int]]()
        for step in range(150):
            tensor = buffers.empty((MIB + chance.randrange(3) * 4096,), torch.uint8)
            mark = (number * 31 + step) % 251
            tensor[:: MIB // 8] = mark
            held.append((tensor, mark))
            while len(held) > chance.randrange(4):
                old, its_mark = held.popleft()
                assert int(old[:: MIB // 8].min()) == int(old[:: MIB // 8].max()) == its_mark

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_tensors_outlive_buffers_and_the_program() -> None:
    """A tensor stays whole when what lent its memory is gone, and a program that ends with some ends well."""
    text = (
        "import torch; from fsqueue.features.buffers import Buffers\n"
        "kept = Buffers().empty((4 << 20,), torch.uint8).fill_(7)\n"
        "assert int(kept.sum()) == 7 * (4 << 20)\n"
        "lender = Buffers(); more = [lender.empty((4 << 20,), torch.uint8) for _ in range(3)]; del more[0]\n"
    )
    run = subprocess.run([sys.executable, "-X", "dev", "-c", text], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
