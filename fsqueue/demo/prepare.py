"""The first process of a run: everything that the workers need before they can start.

    python -m fsqueue.demo.prepare DIR

Converts the target, cuts the text, captures the held-out chunks, writes the untrained draft and its acceptance,
and last of all the plan, which the workers wait for.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing

import torch
from safetensors.torch import save
from torch import Tensor

from fsqueue.demo import text
from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.demo_dir import DemoDirectory, Plan, publish
from fsqueue.demo.draft import Frozen
from fsqueue.demo.evaluate import HeldOut, measure
from fsqueue.demo.journal import Journal
from fsqueue.demo.options import MODEL_PACKAGE, DemoOptions
from fsqueue.demo.target import Target, convert_gguf, load_tokenizer, packaged_gguf

CHUNKS = "chunks.safetensors"


def prepare(demo: DemoDirectory, options: DemoOptions, journal: Journal) -> None:
    """Prepare everything; the plan is there once this returns."""
    folder, version = _target_folder(demo, options, journal)
    journal.write("prepared", note=f"target {version} is ready")
    journal.write("preparing", note="loading the target model")
    target = Target(folder)
    journal.write("preparing", note="cutting the text into chunks")
    split = _split(folder, options)
    publish(demo.at("plan", CHUNKS), save({"training": torch.tensor(split.training, dtype=torch.int32)}))
    _frozen(target, text.commonest(split.training, options.vocabulary, len(target.embedding()))).save(demo)
    held_out_tokens = torch.tensor(split.held_out, dtype=torch.int32)
    _capture_held_out(target, held_out_tokens, journal).save(demo)
    journal.write("prepared", note=f"{len(split.training)} chunks to capture, {len(split.held_out)} held out")
    plan = Plan(folder, version, target.hidden_size, options)
    journal.write("preparing", note="measuring the untrained draft")
    TrainingState(plan).save(demo)
    measure(demo, plan, journal)
    demo.write_plan(plan)


def _target_folder(demo: DemoDirectory, options: DemoOptions, journal: Journal) -> tuple[str, str]:
    """Return the folder that the processes load the target from, and the target's name."""
    if options.target is not None:
        folder = os.path.abspath(options.target)
        return folder, os.path.basename(folder)
    source, file = packaged_gguf()
    journal.write("preparing", note=f"converting the target model {file}, of the package {MODEL_PACKAGE}")
    convert_gguf(source, file, demo.at("target"))
    return demo.at("target"), file


def _split(folder: str, options: DemoOptions) -> text.Split:
    tokenizer = load_tokenizer(folder)
    return text.split(
        text.documents(),
        lambda document: list(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]),
        length=options.tokens,
        training=options.samples,
        held_out=options.held_out_samples,
        seed=options.seed,
    )


def _frozen(target: Target, kept: list[int]) -> Frozen:
    ids = torch.tensor(kept)
    head, bias = target.head_rows(ids)
    return Frozen(target.embedding().float(), head.float(), bias.float(), ids)


def _capture_held_out(target: Target, tokens: Tensor, journal: Journal) -> HeldOut:
    hidden, choices = [], []
    for number, piece in enumerate(tokens):
        journal.write("preparing", note=f"running the target model on held-out text, {number} of {len(tokens)} chunks")
        hidden.append(target.hidden_states(piece))
        choices.append(target.choices(hidden[-1]))
    return HeldOut(tokens, torch.stack(hidden), torch.stack(choices))


def main(arguments: list[str]) -> None:
    demo = DemoDirectory(arguments[0])
    with closing(Journal(demo.log, "prepare", 1)) as journal:
        prepare(demo, demo.read_options(), journal)


if __name__ == "__main__":
    main(sys.argv[1:])
