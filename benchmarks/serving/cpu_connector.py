"""vLLM's hidden states connector for a server on CPUs; loaded by the server, not by fsqueue.

The connector that vLLM 0.32 brings copies with CUDA streams. On a CPU there is nothing to overlap: the states are taken
out of the cache at once, and written by the connector's own threads under its own lock.

    PYTHONPATH=benchmarks/serving vllm serve ... --kv-transfer-config
        '{"kv_connector": "CpuHiddenStatesConnector", "kv_connector_module_path": "cpu_connector", ...}'
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as stock

_Stock: Any = stock.ExampleHiddenStatesConnector


class _Copied:
    """Stands for a CUDA event after a copy that is over."""

    def synchronize(self) -> None:
        return None

    def query(self) -> bool:
        return True


class CpuHiddenStatesConnector(_Stock):  # type: ignore[misc]
    """The stock connector without CUDA."""

    def _submit_async_write(self, pending: Any, *_: Any) -> None:
        if not self._is_tp_rank_zero:
            return
        blocks = torch.tensor(pending.block_ids, dtype=torch.long)
        slots = (blocks[:, None] * self._block_size + torch.arange(self._block_size)).flatten()
        states = stock.extract_from_kv_cache(self._kv_cache, slots, len(pending.token_ids))
        tensors = {"hidden_states": states.clone().contiguous(), "token_ids": pending.token_ids.clone()}
        os.makedirs(os.path.dirname(pending.filename), exist_ok=True)
        lock_fd = self._lock_fds.pop(pending.req_id, None)
        done = _Copied()
        future = self._executor.submit(self._write_tensors, tensors, done, pending.filename, lock_fd)
        self._req_copy_events[pending.req_id] = done
        self._req_futures[pending.req_id] = future
        future.add_done_callback(partial(self._on_write_done, pending.req_id))
