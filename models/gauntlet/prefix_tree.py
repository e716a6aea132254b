"""The prefix tree of everything a model is to read: what two texts begin with alike is computed once.

Token sequences become a compressed tree, and the tree is walked depth first in batches: a batch is some edges of like length whose
beginnings lie in one batch's cache; its children follow before its neighbours, so what is held is one batch per level, never the tree.
Change here: what is shared, how batches are formed. Not here: keys and values (models/kv_cache.py), what is read off (scoring.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEAST_SAVING = 32  # positions: a shared beginning that saves fewer is not worth a pass of its own
MOST_LEVELS = 8  # bounds what is held at once
PASS_COST = {"cpu": 128, "gpu": 4096}  # positions; measured on 2 cores: below some 64 rows matrix products get slower, and Python is felt
ROWS_PER_THREAD = 16  # of a pass: with fewer, the last bits of a row change with their number (see models/kv_cache.py)


@dataclass(slots=True)
class Edge:
    """Tokens ``start`` to ``end`` of ``sequence`` and of every sequence below it. ``ends``: numbers of the sequences that end on it."""

    sequence: np.ndarray
    start: int
    end: int
    ends: list[int] = field(default_factory=list)
    children: list[Edge] = field(default_factory=list)
    wanted: list[tuple[int, int]] = field(default_factory=list)  # (position, sequence number) whose state is read here

    def __len__(self) -> int:
        return self.end - self.start


def prefix_tree(sequences: Sequence[Sequence[int]], wanted_from: Sequence[int], *, shared: bool = True) -> Edge:
    """The root (an empty edge) of the tree of distinct, sorted ``sequences``.

    The states of sequence i are wanted from position ``wanted_from[i]`` to its end. ``shared`` False: every edge is a whole sequence, and
    only one that is the beginning of another is not run by itself. Raises ValueError when the sequences are not sorted and distinct.
    """
    arrays = [np.asarray(s, dtype=np.int64) for s in sequences]
    root = Edge(np.empty(0, dtype=np.int64), 0, 0)
    path = [root]
    previous: np.ndarray = root.sequence
    for number, sequence in enumerate(arrays):
        alike = _alike(previous, sequence)
        if number and (alike == len(sequence) or (alike < len(previous) and previous[alike] > sequence[alike])):
            raise ValueError(f"Sequence {number} does not come after its neighbour: sort the sequences and drop those that repeat.")
        below = None
        while path[-1].end > alike:
            below = path.pop()
        if path[-1].end < alike and below is not None:  # the last edge is split where the two part
            middle = Edge(below.sequence, path[-1].end, alike, children=[below])
            below.start = alike
            path[-1].children[-1] = middle
            path.append(middle)
        leaf = Edge(sequence, path[-1].end, len(sequence), ends=[number])
        path[-1].children.append(leaf)
        path.append(leaf)
        previous = sequence
    _join_small(root, shared)
    _place_wanted(root, arrays, wanted_from)
    return root


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _join_small(root: Edge, shared: bool) -> None:
    """Merge edges into their children where sharing does not pay, from the top down."""
    stack = [(root, 1)]
    while stack:
        edge, level = stack.pop()
        kept, waiting = [], edge.children[::-1]
        while waiting:
            child = waiting.pop()
            saving = (len(child.children) - 1) * len(child)
            if child.children and (not shared or level >= MOST_LEVELS or saving < LEAST_SAVING):
                for grandchild in child.children:
                    grandchild.start = child.start
                child.children[0].ends += child.ends  # they end on the way to it
                waiting += child.children[::-1]
            else:
                kept.append(child)
        edge.children = kept
        stack += [(child, level + 1) for child in kept]


def _place_wanted(root: Edge, arrays: list[np.ndarray], wanted_from: Sequence[int]) -> None:
    stack: list[tuple[Edge, tuple[Edge, ...]]] = [(root, ())]
    while stack:
        edge, above = stack.pop()
        path = (*above, edge)
        for number in edge.ends:
            for owner in path:
                for position in range(max(owner.start, wanted_from[number]), min(owner.end, len(arrays[number]))):
                    owner.wanted.append((position, number))
        stack += [(child, path) for child in edge.children]


def positions_of(root: Edge) -> int:
    """Token positions that a walk computes, padding not counted."""
    total, stack = 0, [root]
    while stack:
        edge = stack.pop()
        total += len(edge)
        stack += edge.children
    return total


@dataclass
class Positions:
    """Token positions a model has run: ``real``, and ``padded`` with what fills up batches."""

    real: int = 0
    padded: int = 0


Visit = Callable[[list[Edge], Any, Any], None]


@dataclass
class Walk:
    """How a model reads a tree. ``visit(edges, hidden (B, T, D), cache)`` is called after every pass, row b being ``edges[b]`` from its start.

    ``batch_tokens`` bounds the cached positions of a pass that others continue (at least one row); a last pass keeps one layer's keys
    and values at a time and may have four times as many. ``keep_ends``: ``visit`` continues where sequences end.
    """

    model: Any
    cache_type: Callable[[], Any] | None
    batch_tokens: int
    device: Any
    visit: Visit
    positions: Positions
    keep_ends: bool = False

    def run(self, root: Edge) -> None:
        self._below([(0, child) for child in root.children], None)

    def _below(self, edges: list[tuple[int, Edge]], held: Any) -> None:
        for batch in self._batches(edges):
            continued = self._is_continued(batch[0][1])
            cache = self._pass(batch, held, continued)
            self._below([(row, child) for row, (_, edge) in enumerate(batch) for child in edge.children], cache)
            del cache

    def _is_continued(self, edge: Edge) -> bool:
        return bool(edge.children) or (self.keep_ends and bool(edge.ends))

    @property
    def _pass_cost(self) -> int:
        """Positions that a pass of its own costs: the most padding that is taken to save one."""
        return PASS_COST["cpu" if getattr(self.device, "type", self.device) == "cpu" else "gpu"]

    def _batches(self, edges: list[tuple[int, Edge]]) -> Iterator[list[tuple[int, Edge]]]:
        """Edges alike in length and in whether others continue them."""
        ordered = sorted(edges, key=lambda e: (self._is_continued(e[1]), len(e[1]), e[1].start))
        batch: list[tuple[int, Edge]] = []
        longest = furthest = filling = 0
        for row, edge in ordered:
            longest_now, furthest_now = max(longest, len(edge)), max(furthest, edge.start)
            last = self.cache_type is not None and not self._is_continued(edge)
            room = self.batch_tokens * (4 if last else 1)
            full = batch and ((longest_now + furthest_now) * (len(batch) + 1) > room or longest_now * (len(batch) + 1) > self.batch_tokens)
            filling += (longest_now - longest) * len(batch)
            full = full or filling > self._pass_cost
            if full or (batch and self._is_continued(batch[0][1]) != self._is_continued(edge)):
                yield batch
                batch, longest_now, furthest_now, filling = [], len(edge), edge.start, 0
            batch.append((row, edge))
            longest, furthest = longest_now, furthest_now
        if batch:
            yield batch

    def _pass(self, batch: list[tuple[int, Edge]], held: Any, continued: bool) -> Any:
        import torch

        rows = [edge.sequence[edge.start : edge.end] for _, edge in batch]
        tokens_BT = padded(rows, self.device)
        self.positions.real += sum(map(len, rows))
        self.positions.padded += tokens_BT.numel()
        edges = [edge for _, edge in batch]
        if self.cache_type is None:
            self.visit(edges, self.model.hidden(tokens_BT), None)
            return None
        if held is None:
            cache = self.cache_type()
        else:
            starts_B = torch.tensor([edge.start for edge in edges], device=self.device)
            cache = held.select(torch.tensor([row for row, _ in batch], device=self.device), lengths_B=starts_B, stored=continued)
        hidden_BTD = self.model.hidden(tokens_BT, cache=cache, lengths_B=torch.tensor([len(edge) for edge in edges], device=self.device))
        self.visit(edges, hidden_BTD, cache)
        return cache


def padded(rows: Sequence[Sequence[int] | np.ndarray], device: Any) -> Any:
    """int64 (B, T) of ``rows`` filled up on the right with token 0, T large enough for a pass whose rows do not depend on their number."""
    import torch

    width = max(*map(len, rows), -(-least_rows() // len(rows)))
    filled = np.zeros((len(rows), width), dtype=np.int64)
    for row, ids in zip(filled, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(filled).to(device)


def least_rows() -> int:
    """Rows of the smallest matrix product."""
    import torch

    return ROWS_PER_THREAD * torch.get_num_threads()
