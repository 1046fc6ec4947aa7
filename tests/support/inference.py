"""Inference servers in miniature: they answer over HTTP, and hand files over, as the real ones do.

    python -m tests.support.inference PORT DIRECTORY [SECONDS]

`FakeVllm` follows the protocol of vLLM 0.32's connector: the lock is taken before the reply leaves, the file is written
after it, and closing the lock ends that. `FakeSglang` answers in the documented form of SGLang 0.5. Neither runs a
model: the states of a token are numbers that tell token, place and layer. Tokens of a text are its bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

MODEL, HIDDEN = "tiny", 4
LAYERS = ("2", "5", "last")


def states_of(ids: list[int], layers: int = len(LAYERS)) -> Tensor:
    """[tokens, layers, hidden]; every number is exact in bfloat16."""
    tokens = torch.tensor(ids, dtype=torch.float32)[:, None, None] % 128
    layer = torch.arange(layers, dtype=torch.float32)[None, :, None] / 2
    return (tokens + layer).expand(len(ids), layers, HIDDEN).contiguous()


def ids_of(text: str) -> list[int]:
    return list(text.encode())


class FakeServer:
    """A server in threads of this process.

    Attributes:
        asked: the bodies of the requests, in order.
        failures: answers, as (status, text), that the next requests get instead of theirs.
    """

    def __init__(self, port: int = 0) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.failures: list[tuple[int, str]] = []
        self._mutex = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any] | None) -> None:
                status, answer = server.answered(self.path, body, dict(self.headers))
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up

        self._http = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def answered(self, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> tuple[int, Any]:
        with self._mutex:
            if body is not None:
                self.asked.append(body)
                self.headers.append(headers)
                if self.failures:
                    return self.failures.pop(0)
        return 200, self.get(path) if body is None else self.post(path, body, headers)

    def get(self, path: str) -> Any:
        raise NotImplementedError

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class FakeVllm(FakeServer):
    """Writes a file a request into a directory.

    Attributes:
        written: takes (path, tensors) and writes the file; tests put a worse one in its place.
        path_in_reply: what a reply calls the file.
        use_lock: whether there is a lock file.
        seconds: how long a prompt takes.
    """

    def __init__(self, directory: Path, port: int = 0, seconds: float = 0.0) -> None:
        self.directory = directory
        self.written: Callable[[str, dict[str, Tensor]], None] = lambda path, tensors: save_file(tensors, path)
        self.path_in_reply: Callable[[str], Any] = lambda path: path
        self.use_lock = True
        self.seconds = seconds
        self.models = [MODEL]
        self.layers = len(LAYERS)
        super().__init__(port)

    def get(self, path: str) -> Any:
        assert path == "/v1/models"
        return {"object": "list", "data": [{"id": model, "object": "model"} for model in self.models]}

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        assert path == "/v1/completions" and body["max_tokens"] == 1
        time.sleep(self.seconds)
        prompt = body["prompt"]
        ids = ids_of(prompt) if isinstance(prompt, str) else prompt
        name = str(self.directory / f"cmpl-{headers['X-Request-Id']}-0-1a2b3c4d.safetensors")
        lock_fd = -1
        if self.use_lock:
            lock_fd = os.open(f"{name}.lock", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
        tensors = {"hidden_states": states_of(ids, self.layers), "token_ids": torch.tensor(ids)}
        threading.Thread(target=self._write, args=(name, tensors, lock_fd), daemon=True).start()
        return {
            "model": body["model"],
            "choices": [{"index": 0, "text": "x", "finish_reason": "length"}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1},
            "kv_transfer_params": {"hidden_states_path": self.path_in_reply(name)},
        }

    def _write(self, name: str, tensors: dict[str, Tensor], lock_fd: int) -> None:
        time.sleep(self.seconds)
        try:
            self.written(name, tensors)
        finally:
            if lock_fd >= 0:
                os.close(lock_fd)


class FakeSglang(FakeServer):
    """Answers /generate with states in JSON.

    Attributes:
        info: what /get_server_info says.
        cached: how many of a prompt's tokens come from the radix cache, and have no rows.
        chunk: rows of a prefill in chunks of so many tokens; None: not in chunks.
        layers: how many auxiliary layers there are, beside each other; 0: the last one alone.
        changed: takes a reply, and returns another.
    """

    def __init__(self) -> None:
        self.info: dict[str, Any] = {"dtype": "bfloat16"}
        self.cached = 0
        self.chunk: int | None = None
        self.layers = 0
        self.changed: Callable[[dict[str, Any]], Any] = lambda reply: reply
        super().__init__()

    def get(self, path: str) -> Any:
        assert path == "/get_server_info"
        return self.info

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        if path == "/tokenize":
            ids = ids_of(body["prompt"])
            return {"tokens": ids, "count": len(ids), "max_model_len": 4096}
        assert path == "/generate" and body["sampling_params"]["max_new_tokens"] == 1
        ids = body["input_ids"]
        rows = states_of(ids, self.layers or 1).flatten(1).tolist()[self.cached :]
        if self.chunk is not None:
            rows = rows[(len(rows) - 1) // self.chunk * self.chunk :]
        meta = {
            "id": "7c1f",
            "finish_reason": {"type": "length", "length": 1},
            "prompt_tokens": len(ids),
            "completion_tokens": 1,
            "cached_tokens": self.cached,
            "weight_version": "step-7",
            "hidden_states": [rows],
        }
        return self.changed({"text": "x", "output_ids": [1], "meta_info": meta})


def main() -> None:
    server = FakeVllm(Path(sys.argv[2]), int(sys.argv[1]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    print(server.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
