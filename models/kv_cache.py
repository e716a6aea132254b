"""Keys and values of tokens already seen, so that a shared prefix is computed once and continued many times.

Every key lies in the slot of its absolute position, whatever its row's neighbours are, and attention goes over slots in blocks of fixed
size. On CPU in float32 a token's output is therefore a function of the tokens before it alone: it does not depend, not even in its last
bit, on how its text was cut into passes or on which rows were computed beside it. Measured (torch 2.15, MKL, AVX-512, 1 and 2 threads): a
row of a matrix product changes with the number of rows only below 4 rows per thread, and products over keys change with the number of
keys around 256; hence ``MIN_QUERIES`` and ``BLOCK``, and the least size of a pass in models/gauntlet/prefix_tree.py.

Change here: where keys lie, how cached attention is computed. Not here: rotary positions (transformer.py), what shares a prefix
(gauntlet/prefix_tree.py). Shape suffixes: B rows, T new positions, S slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

BLOCK = 128  # slots; sums over keys are taken in blocks of so many, always the same ones
MIN_QUERIES = 8  # rows of the smallest matrix product of attention
QUERIES_AT_ONCE = 128  # so that few slots after a query are multiplied for nothing
SCORES_AT_ONCE = 1 << 20  # held at a time (4 MiB: a core's cache, and memory that malloc gives again without asking the system)


def rounded_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def attend_by_position(q: Tensor, k: Tensor, v: Tensor, positions_BT: Tensor, scale: float | None = None, window: int | None = None) -> Tensor:
    """Attention (B, H, T, head_dim) of queries at ``positions_BT`` to the slots up to their own, the last ``window`` of them where given.

    ``k`` and ``v`` (B, kv_heads, S, head_dim), S a multiple of ``BLOCK``; slots after a query's position must be finite, they count zero.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.device.type != "cpu":
        hidden = _hidden_slots(0, k.shape[2], positions_BT, window)
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden[:, None], scale=scale)
    rows, heads, new, _ = q.shape
    out = torch.empty(rows, heads, new, v.shape[-1], dtype=q.dtype)
    for at in range(0, new, QUERIES_AT_ONCE):
        asked = slice(at, min(at + QUERIES_AT_ONCE, new))
        slots = rounded_up(int(positions_BT[:, asked].max()) + 1, BLOCK)
        step = max(1, SCORES_AT_ONCE // (heads * max(MIN_QUERIES, asked.stop - at) * slots))
        for row in range(0, rows, step):
            some = slice(row, row + step)
            out[some, :, asked] = _attend_in_blocks(q[some, :, asked] * scale, k[some], v[some], positions_BT[some, asked], slots, window)
    return out


def _hidden_slots(first: int, slots: int, positions_BT: Tensor, window: int | None) -> Tensor:
    """(B, T, slots - first) bool: which slots from ``first`` on a query does not see."""
    slot_S = torch.arange(first, slots, device=positions_BT.device)
    hidden = slot_S > positions_BT[:, :, None]
    return hidden if window is None else hidden | (slot_S <= positions_BT[:, :, None] - window)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, positions_BT: Tensor, slots: int, window: int | None) -> Tensor:
    rows, heads, asked, head_dim = q.shape
    if asked < MIN_QUERIES:
        q = F.pad(q, (0, 0, 0, MIN_QUERIES - asked))
        positions_BT = F.pad(positions_BT, (0, MIN_QUERIES - asked), mode="replicate")
    new, kv_heads = q.shape[2], k.shape[1]
    keys, values = (t.flatten(0, 1)[:, :slots] for t in (k, v))
    scores = torch.bmm(q.reshape(rows * kv_heads, -1, head_dim), keys.transpose(1, 2))
    first = 0 if window else int(positions_BT.min()) + 1  # every query sees the slots before
    if first < slots:
        hidden = _hidden_slots(first, slots, positions_BT, window)
        scores.view(rows, heads, new, slots)[..., first:].masked_fill_(hidden[:, None], float("-inf"))
    weights = torch.softmax(scores, dim=-1, out=scores) if torch.is_inference_mode_enabled() else scores.softmax(-1)
    out = torch.bmm(weights[..., :BLOCK], values[:, :BLOCK])
    for at in range(BLOCK, slots, BLOCK):
        out.baddbmm_(weights[..., at : at + BLOCK], values[:, at : at + BLOCK])
    return out.view(rows, heads, new, -1)[:, :, :asked]


class KVCache:
    """Starts empty; every forward pass with it appends. Rows may have different lengths (right padding is never attended to).

    Score several continuations of one prefix::

        cache = KVCache()
        model.hidden(prefix_BT, cache=cache, lengths_B=lengths)
        logits = model.forward(choices_CT, cache=cache.expand(choices_per_row)).logits_BTV

    ``expand`` and ``select`` leave this cache as it was, so it can be continued again. A model uses it in four steps: ``plan`` once per
    pass, per layer ``attend`` (or ``append``, and attention of its own over the slots), ``advance`` at the end.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []  # per layer (B, kv_heads, S, head_dim), rotated
        self.values: list[Tensor] = []
        self.lengths_B: Tensor | None = None  # real tokens per row; None before the first pass
        self.positions_BT: Tensor | None = None  # of the tokens of the pass that is running
        self._stored = True
        self._origin: tuple[KVCache, Tensor] | None = None

    def expand(self, repeats: int | Tensor) -> KVCache:
        """A new cache in which row b appears ``repeats`` (or ``repeats[b]``) times in a row."""
        if self.lengths_B is None:
            return KVCache()
        return self.select(torch.arange(len(self.lengths_B), device=self.lengths_B.device).repeat_interleave(repeats))

    def select(self, rows: Tensor, *, lengths_B: Tensor | None = None, stored: bool = True) -> KVCache:
        """A new cache of these ``rows`` (int64, repeats allowed), each cut to ``lengths_B`` tokens where given.

        Keys are copied layer by layer when the new cache is used. ``stored`` False: it serves one pass and keeps no layer's copy.
        """
        if self.lengths_B is None:
            raise ValueError("The cache is empty: run a forward pass with it before rows are selected.")
        chosen = KVCache()
        chosen.lengths_B = self.lengths_B[rows] if lengths_B is None else lengths_B
        waiting = self._origin if self._stored else None  # not used yet, so its keys still lie where they come from
        chosen._origin, chosen._stored = ((self, rows) if waiting is None else (waiting[0], waiting[1][rows])), stored
        return chosen

    def plan(self, tokens_BT: Tensor) -> Tensor:
        """Positions (B, T) of new tokens. Raises ValueError for another number of rows than the cache holds."""
        rows, new = tokens_BT.shape
        if self.lengths_B is None:
            self.lengths_B = torch.zeros(rows, dtype=torch.int64, device=tokens_BT.device)
        if len(self.lengths_B) != rows:
            raise ValueError(f"The cache holds {len(self.lengths_B)} rows, the new tokens have {rows}. Use cache.expand() to repeat rows.")
        self.positions_BT = self.lengths_B[:, None] + torch.arange(new, device=tokens_BT.device)
        return self.positions_BT

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put one layer's new keys and values (B, kv_heads, T, head_dim) into their slots; returns all slots, later ones undefined but finite."""
        if self.positions_BT is None:
            raise ValueError("plan() comes before append(): it says where the new keys lie.")
        held = (self.keys[layer], self.values[layer]) if layer < len(self.keys) else self._copied(layer)
        slots = rounded_up(int(self.positions_BT[:, -1].max()) + 1, BLOCK)
        full = [_with_slots(old, new, slots) for old, new in zip(held, (keys, values), strict=True)]
        index = self.positions_BT[:, None, :, None].expand(keys.shape)
        for buffer, new in zip(full, (keys, values), strict=True):
            buffer.scatter_(2, index, new)
        if self._stored and layer == len(self.keys):
            self.keys.append(full[0])
            self.values.append(full[1])
        elif self._stored:
            self.keys[layer], self.values[layer] = full
        return full[0], full[1]

    def _copied(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        if self._origin is None:
            return None, None
        origin, rows = self._origin
        old = origin.keys[layer], origin.values[layer]
        used = int(self.lengths_B.max())  # type: ignore[union-attr] - an origin gives lengths
        return old[0][:, :, :used].index_select(0, rows), old[1][:, :, :used].index_select(0, rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append one layer's keys and values and attend to all of them: (B, H, T, head_dim)."""
        keys, values = self.append(layer, k, v)
        return attend_by_position(q, keys, values, self.positions_BT)  # type: ignore[arg-type] - append has checked it

    def advance(self, new: int, lengths_B: Tensor | None) -> None:
        """Record how many of the ``new`` positions just appended are real (all, or the first ``lengths_B`` of each row)."""
        self.lengths_B = self.lengths_B + (new if lengths_B is None else lengths_B.to(self.lengths_B.device))  # type: ignore[operator, union-attr]
        self.positions_BT = None
        if self._stored:
            self._origin = None  # every layer is copied


def _with_slots(old: Tensor | None, new: Tensor, slots: int) -> Tensor:
    """``old`` with room for ``slots``, the new ones zero; ``old`` itself when it has room."""
    if old is not None and old.shape[2] >= slots:
        return old
    full = new.new_zeros(new.shape[0], new.shape[1], slots, new.shape[3])
    if old is not None:
        full[:, :, : old.shape[2]] = old
    return full
