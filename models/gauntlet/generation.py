"""Greedy generation from many contexts: shared beginnings once, then one token at a time for all rows that still go on.

Change here: how texts are continued. Not here: when an answer is right (scoring.py), the prefix tree (prefix_tree.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.gauntlet.prefix_tree import Edge, Walk, padded, prefix_tree

if TYPE_CHECKING:
    from models.gauntlet.scoring import Scorer

Context = tuple[int, ...]


class Greedy:
    """Continues contexts with the model of ``scorer`` until EOS, one of ``stops`` or ``max_new_tokens``."""

    def __init__(self, scorer: Scorer, max_new_tokens: int, stops: Sequence[str]) -> None:
        self.scorer, self.max_new_tokens, self.stops = scorer, max_new_tokens, stops

    def continue_all(self, contexts: Sequence[Context]) -> list[str]:
        """The text after each context. Raises ValueError for a context without tokens."""
        import torch

        if not all(contexts):
            raise ValueError("A context has no tokens: there is nothing to continue.")
        distinct = sorted(set(contexts))
        new: dict[Context, list[int]] = {}
        with torch.inference_mode():
            if self.scorer.cache_type is None:
                self._whole_each_time(distinct, new)
            else:
                self._from_tree(distinct, new)
        return [self.scorer.encoder.decode(new[context]) for context in contexts]

    def _from_tree(self, contexts: list[Context], new: dict[Context, list[int]]) -> None:
        scorer = self.scorer

        def decode(edges: list[Edge], hidden_BTD: Any, cache: Any) -> None:
            ended = sorted(((row, contexts[n]) for row, edge in enumerate(edges) for n in edge.ends), key=lambda e: (len(e[1]), e[1]))
            for group in self._groups(ended):
                self._decode(group, edges, hidden_BTD, cache, new)

        tree = prefix_tree(contexts, [len(c) - 1 for c in contexts])
        Walk(scorer.model, scorer.cache_type, scorer.batch_tokens, scorer.device, decode, scorer.positions, keep_ends=True).run(tree)

    def _groups(self, ended: list[tuple[int, Context]]) -> list[list[tuple[int, Context]]]:
        groups: list[list[tuple[int, Context]]] = []
        for row, context in ended:  # by rising length
            if not groups or (len(groups[-1]) + 1) * (len(context) + self.max_new_tokens) > self.scorer.batch_tokens:
                groups.append([])
            groups[-1].append((row, context))
        return groups

    def _decode(self, group: list[tuple[int, Context]], edges: list[Edge], hidden_BTD: Any, cache: Any, new: dict[Context, list[int]]) -> None:
        import torch

        scorer = self.scorer
        rows = torch.tensor([row for row, _ in group], device=scorer.device)
        columns = torch.tensor([len(context) - 1 - edges[row].start for row, context in group], device=scorer.device)
        lengths_B = torch.tensor([len(context) for _, context in group], device=scorer.device)
        cache = cache.select(rows, lengths_B=lengths_B)
        last_BD = hidden_BTD[rows, columns]
        alive = [context for _, context in group]
        new.update({context: [] for context in alive})
        for step in range(self.max_new_tokens):
            tokens = scorer._logits(last_BD).argmax(-1).tolist()
            going = [b for b, (context, token) in enumerate(zip(alive, tokens, strict=True)) if self._goes_on(new[context], token)]
            if not going or step == self.max_new_tokens - 1:
                return
            if len(going) < len(alive):
                cache = cache.select(torch.tensor(going, device=scorer.device))
            alive = [alive[b] for b in going]
            tokens_BT = padded([[tokens[b]] for b in going], scorer.device)
            scorer.positions.real += len(going)
            scorer.positions.padded += tokens_BT.numel()
            last_BD = scorer.model.hidden(tokens_BT, cache=cache, lengths_B=torch.ones(len(going), dtype=torch.int64, device=scorer.device))[:, 0]

    def _goes_on(self, so_far: list[int], token: int) -> bool:
        """Add ``token`` unless it ends the text; False when the text is finished."""
        if token == self.scorer.encoder.eos_id:
            return False
        so_far.append(token)
        return not (self.stops and any(stop in self.scorer.encoder.decode(so_far) for stop in self.stops))

    def _whole_each_time(self, contexts: list[Context], new: dict[Context, list[int]]) -> None:
        """Without a cache: every step reads the whole text again."""
        scorer = self.scorer
        waiting = sorted(contexts, key=lambda c: (len(c), c))
        new.update({context: [] for context in waiting})
        while waiting:
            size = max(1, scorer.batch_tokens // (len(waiting[0]) + self.max_new_tokens))
            alive, waiting = waiting[:size], waiting[size:]
            for _ in range(self.max_new_tokens):
                texts = [(*context, *new[context]) for context in alive]
                tokens_BT = padded(texts, scorer.device)
                scorer.positions.real += sum(map(len, texts))
                scorer.positions.padded += tokens_BT.numel()
                hidden_BTD = scorer.model.hidden(tokens_BT)
                last_BD = hidden_BTD[range(len(texts)), [len(text) - 1 for text in texts]]
                tokens = scorer._logits(last_BD).argmax(-1).tolist()
                alive = [context for context, token in zip(alive, tokens, strict=True) if self._goes_on(new[context], token)]
                if not alive:
                    break
