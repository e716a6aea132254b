"""Generation from many contexts, greedy or sampled: shared beginnings once, then one token at a time for all rows that still go on.

Change here: how texts are continued. Not here: which token a sample takes (sampling.py), when an answer is right (scoring.py, code_evaluation.py),
the prefix tree (prefix_tree.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.gauntlet import sampling
from models.gauntlet.prefix_tree import Edge, Walk, padded, prefix_tree
from models.gauntlet.sampling import Draw, Sampling

if TYPE_CHECKING:
    from models.gauntlet.scoring import Scorer

Context = tuple[int, ...]


class Greedy:
    """Continues contexts with the model of ``scorer`` until EOS, one of ``stops`` or ``max_new_tokens``."""

    def __init__(self, scorer: Scorer, max_new_tokens: int, stops: Sequence[str]) -> None:
        self.scorer, self.max_new_tokens, self.stops = scorer, max_new_tokens, stops

    def continue_all(self, contexts: Sequence[Context]) -> list[str]:
        """The text after each context. Raises ValueError for a context without tokens."""
        return self.continue_draws([(context, "") for context in contexts])

    def continue_draws(self, draws: Sequence[Draw]) -> list[str]:
        """The text of each draw. Raises ValueError for a context without tokens."""
        import torch

        if not all(context for context, _ in draws):
            raise ValueError("A context has no tokens: there is nothing to continue.")
        distinct = sorted(set(draws))
        new: dict[Draw, list[int]] = {}
        with torch.inference_mode():
            if self.scorer.cache_type is None:
                self._whole_each_time(distinct, new)
            else:
                self._from_tree(distinct, new)
        return [self.scorer.encoder.decode(new[draw]) for draw in draws]

    def _pick(self, logits_NV: Any, draws: Sequence[Draw], step: int) -> list[int]:
        """The next token of every row."""
        return logits_NV.argmax(-1).tolist()

    def _from_tree(self, draws: list[Draw], new: dict[Draw, list[int]]) -> None:
        scorer = self.scorer
        after: dict[Context, list[Draw]] = {}
        for draw in draws:
            after.setdefault(draw[0], []).append(draw)
        contexts = list(after)

        def decode(edges: list[Edge], hidden_BTD: Any, cache: Any) -> None:
            ended = [(row, draw) for row, edge in enumerate(edges) for n in edge.ends for draw in after[contexts[n]]]
            ended.sort(key=lambda e: (len(e[1][0]), e[1]))
            for group in self._groups(ended):
                self._decode(group, edges, hidden_BTD, cache, new)

        tree = prefix_tree(contexts, [len(c) - 1 for c in contexts])
        Walk(scorer.model, scorer.cache_type, scorer.batch_tokens, scorer.device, decode, scorer.positions, keep_ends=True).run(tree)

    def _groups(self, ended: list[tuple[int, Draw]]) -> list[list[tuple[int, Draw]]]:
        groups: list[list[tuple[int, Draw]]] = []
        for row, draw in ended:  # by rising length
            if not groups or (len(groups[-1]) + 1) * (len(draw[0]) + self.max_new_tokens) > self.scorer.batch_tokens:
                groups.append([])
            groups[-1].append((row, draw))
        return groups

    def _decode(self, group: list[tuple[int, Draw]], edges: list[Edge], hidden_BTD: Any, cache: Any, new: dict[Draw, list[int]]) -> None:
        import torch

        scorer = self.scorer
        rows = torch.tensor([row for row, _ in group], device=scorer.device)
        columns = torch.tensor([len(context) - 1 - edges[row].start for row, (context, _) in group], device=scorer.device)
        lengths_B = torch.tensor([len(context) for _, (context, _) in group], device=scorer.device)
        cache = cache.select(rows, lengths_B=lengths_B)
        last_BD = hidden_BTD[rows, columns]
        alive = [draw for _, draw in group]
        new.update({draw: [] for draw in alive})
        for step in range(self.max_new_tokens):
            tokens = self._pick(scorer._logits(last_BD), alive, step)
            going = [b for b, (draw, token) in enumerate(zip(alive, tokens, strict=True)) if self._goes_on(new[draw], token)]
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

    def _whole_each_time(self, draws: list[Draw], new: dict[Draw, list[int]]) -> None:
        """Without a cache: every step reads the whole text again."""
        scorer = self.scorer
        waiting = sorted(draws, key=lambda d: (len(d[0]), d))
        new.update({draw: [] for draw in waiting})
        while waiting:
            size = max(1, scorer.batch_tokens // (len(waiting[0][0]) + self.max_new_tokens))
            alive, waiting = waiting[:size], waiting[size:]
            for step in range(self.max_new_tokens):
                texts = [(*draw[0], *new[draw]) for draw in alive]
                tokens_BT = padded(texts, scorer.device)
                scorer.positions.real += sum(map(len, texts))
                scorer.positions.padded += tokens_BT.numel()
                hidden_BTD = scorer.model.hidden(tokens_BT)
                last_BD = hidden_BTD[range(len(texts)), [len(text) - 1 for text in texts]]
                tokens = self._pick(scorer._logits(last_BD), alive, step)
                alive = [draw for draw, token in zip(alive, tokens, strict=True) if self._goes_on(new[draw], token)]
                if not alive:
                    break


class Sampled(Greedy):
    """Draws every token. A text is a function of its draw and the settings alone, wherever the model's logits are one of the context."""

    def __init__(self, scorer: Scorer, max_new_tokens: int, stops: Sequence[str], settings: Sampling) -> None:
        super().__init__(scorer, max_new_tokens, stops)
        self.settings = settings

    def _pick(self, logits_NV: Any, draws: Sequence[Draw], step: int) -> list[int]:
        return sampling.draw(logits_NV, draws, step, self.settings)
