"""Real English text that every Python ships, cut into chunks of tokens, and the split into training and held-out.

The text is the language reference inside `pydoc_data.topics`. Its topics quote each other, so a paragraph is
kept only where it occurs first; documents are then disjoint, and the split is by whole documents.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pydoc_data.topics import topics

from fsqueue.demo.options import DemoError

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Split:
    """Chunks of equal length; no document contributes to both sides."""

    training: list[list[int]]
    held_out: list[list[int]]


def documents() -> list[str]:
    """List the language reference's topics, each without the paragraphs that an earlier one had."""
    seen: set[str] = set()
    kept: list[str] = []
    for _, text in sorted(topics.items()):
        paragraphs = [p.strip("\n") for p in re.split(r"\n\s*\n", text) if p.strip()]
        fresh = [p for p in paragraphs if " ".join(p.split()) not in seen]
        seen.update(" ".join(p.split()) for p in fresh)
        if fresh:
            kept.append("\n\n".join(dict.fromkeys(fresh)))
    return kept


def chunk(tokens: Sequence[int], length: int) -> list[list[int]]:
    """Cut consecutive pieces of exactly this length; the rest is dropped."""
    return [list(tokens[at : at + length]) for at in range(0, len(tokens) - length + 1, length)]


def split(texts: Sequence[str], encode: Encode, *, length: int, training: int, held_out: int, seed: int) -> Split:
    """Choose chunks: whole documents for the held-out side first, then the training side from the others.

    Raises:
        DemoError: the text is too short for that many chunks.
    """
    chunked = [pieces for text in texts if (pieces := chunk(encode(text), length))]
    order = random.Random(seed)
    order.shuffle(chunked)
    held: list[list[int]] = []
    while chunked and len(held) < held_out:
        held += chunked.pop()
    rest = [piece for pieces in chunked for piece in pieces]
    if len(held) < held_out or len(rest) < training:
        raise DemoError(
            f"the text gives {len(rest)} chunks of {length} tokens beside {min(len(held), held_out)} held out, "
            f"{training} were asked for: lower --samples or --tokens"
        )
    order.shuffle(rest)
    return Split(rest[:training], held[:held_out])


def commonest(chunks: Iterable[Sequence[int]], size: int, vocabulary: int) -> list[int]:
    """Choose the token ids that a pruned vocabulary keeps: the chunks' commonest, filled up with the lowest ids."""
    counts = Counter(token for piece in chunks for token in piece)
    kept = {token for token, _ in counts.most_common(size)}
    fill = (token for token in range(vocabulary) if token not in kept)
    return sorted([*kept, *islice(fill, size - len(kept))])
