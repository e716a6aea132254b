"""Our scorer as a language model of lm-evaluation-harness (lm_eval 0.4.13), with the numbers of lm_eval's own ``hf`` backend.

    lm = lm_class()(lambda: scorer, tokenizer, max_length=2048)
    lm_eval.simple_evaluate(model=lm, tasks=["arc_easy"])

lm_eval makes texts and judges answers; what a text is in tokens, where it is cut and when a generation ends is decided here, by the rules of
``lm_eval.models.huggingface.HFLM``: context and continuation are tokenised as one text and parted where the context alone would end, white
space at the end of a context belongs to the continuation, an empty context is BOS (EOS, where there is none), too long texts lose their beginning.
lm_eval is optional and imported only inside functions. Change here: lm_eval's rules. Not here: which folder is which model (jobs/lm_eval_command.py).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_LOG = logging.getLogger(__name__)
MAX_NEW_TOKENS = 256  # of a generation whose task says nothing (HFLM.max_gen_toks)
_END = "\0end of text\0"  # what a token that ends a generation is decoded to, so that it is a stop like any other
# Settings of a generation that change nothing where every token is the likeliest one, and those that change nothing at this value.
_WITHOUT_EFFECT = frozenset({"top_p", "top_k", "min_p", "typical_p", "use_cache"})
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0, "do_sample": False, "temperature": 0.0}


class Memory(Protocol):
    """Where answers are kept, by ``request_id``: (log-probability, greedy) of a loglikelihood, a number of a rolling one, a text of a generation."""

    def known(self, kind: str, ids: Iterable[str]) -> Mapping[str, Any]:
        """Those of the answers that are known already."""

    def keep(self, kind: str, answers: Mapping[str, Any]) -> None:
        """Store answers; after this returns they are not asked again."""


def request_id(kind: str, arguments: Sequence[Any]) -> str:
    """sha256 hex of what a request asks: its kind and texts, and for a generation its settings."""
    return hashlib.sha256(json.dumps([kind, *arguments], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _EndingEncoder:
    """Decodes as transformers does, special tokens left out; ``ends`` are the tokens that end a text (and, if they are not special, its last)."""

    tokenizer: Any
    ends: frozenset[int]
    eos_id: None = None

    def decode(self, ids: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        return self.tokenizer.decode(list(ids if end is None else ids[: end + 1]), skip_special_tokens=True) + ("" if end is None else _END)


class Answers:
    """What an LM of lm_eval does, to be put before its TemplateLM (``lm_class``).

    ``scorer`` gives a models.gauntlet.scoring.Scorer (or a stand-in) and is called when the first answer is needed. ``tokenizer`` is a transformers tokenizer.
    ``max_length``: tokens the model reads at most. ``ends``: tokens that end a generation beside the tokenizer's EOS. ``not_applied``: what the
    model's own settings would change about texts and is not done here. ``add_bos_token`` and ``prefix_token_id`` as in HFLM. With a ``memory``,
    answers are stored in portions of ``portion`` requests (of generations an eighth, they take longer) and never asked twice.
    """

    def __init__(
        self, scorer: Callable[[], Any], tokenizer: Any, *, max_length: int, ends: Iterable[int] = (), not_applied: Mapping[str, Any] | None = None,
        add_bos_token: bool | None = None, prefix_token_id: int | None = None, memory: Memory | None = None, portion: int = 1024,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokenizer, self.max_length, self.add_bos_token, self.memory, self.portion = tokenizer, max_length, add_bos_token, memory, portion
        self._open, self._prefix, self._about, self._not_applied = scorer, prefix_token_id, dict(about or {}), dict(not_applied or {})
        self.ends = frozenset(i for i in (tokenizer.eos_token_id, *ends) if i is not None)
        if self.prefix_token_id is None:
            raise ValueError("The tokenizer has neither a BOS nor an EOS token, and lm_eval needs one before a text without context. Give prefix_token_id.")

    @functools.cached_property
    def scorer(self) -> Any:
        """The scorer that answers, opened when it is first needed."""
        return self._open()

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        if self._prefix is not None:
            return self._prefix
        return self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def settings(self) -> dict[str, Any]:
        """What an answer depends on beside model and request."""
        return {"max_length": self.max_length, "ends": sorted(self.ends), "add_bos_token": self.add_bos_token, "prefix_token_id": self.prefix_token_id}

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes about the model into its results."""
        return {**self._about, "model_max_length": self.max_length}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text, by the tokenizer's own template; without the system's part where the template refuses it."""
        from jinja2.exceptions import TemplateError

        how = {"tokenize": False, "add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return self.tokenizer.apply_chat_template(chat_history, **how)
        except TemplateError:
            return self.tokenizer.apply_chat_template([m for m in chat_history if m["role"] != "system"], **how)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; where nothing is said, with the special tokens the tokenizer adds unless the text begins with the prefix token already."""
        if add_special_tokens is None:
            add_special_tokens = False if string.startswith(self.tokenizer.decode(self.prefix_token_id)) else self.add_bos_token
        return list(self.tokenizer.encode(string, **({} if add_special_tokens is None else {"add_special_tokens": add_special_tokens})))

    def _encode_context(self, string: str) -> list[int]:
        """As ``tok_encode``, for a generation: there only the BOS token's text counts as a beginning."""
        bos = self.tokenizer.bos_token
        add = False if bos is not None and string.startswith(bos) else self.add_bos_token
        return list(self.tokenizer(string, **({} if add is None else {"add_special_tokens": add}))["input_ids"])

    def tokens(self, kind: str, arguments: Sequence[Any]) -> tuple[list[int], list[int], bool]:
        """(tokens read, tokens predicted, whether something is cut) of one request; a generation predicts none that are known before."""
        if kind == "generate_until":
            context = self._encode_context(arguments[0])
            return context, [], len(context) > self.max_length - _max_new_tokens(arguments[1])
        if kind == "loglikelihood_rolling":
            return [self.prefix_token_id], self.tok_encode(arguments[0]), False
        context, continuation = arguments
        pair = self._encode_pair(context, continuation) if context else ([self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False))  # type: ignore[attr-defined]
        return *pair, len(pair[0]) + len(pair[1]) > self.max_length + 1

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether it is what greedy decoding gives) of every continuation after its context."""
        ask = super().loglikelihood  # type: ignore[misc] - lm_eval's TemplateLM tokenises and calls _loglikelihood_tokens
        return self._answer("loglikelihood", requests, lambda part: ask(part, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of every whole text, read in windows of ``max_length`` tokens."""
        return self._answer("loglikelihood_rolling", requests, self._rolling)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuation of every context, up to the first of its stops."""
        return self._answer("generate_until", requests, self._generated)

    def _answer(self, kind: str, requests: Sequence[Any], ask: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
        ids = [request_id(kind, request.args) for request in requests]
        distinct = dict(zip(ids, requests, strict=True))
        found = dict(self.memory.known(kind, distinct)) if self.memory else {}
        missing = [i for i in distinct if i not in found]
        size = max(1, self.portion // (8 if kind == "generate_until" else 1)) if self.memory else max(1, len(missing))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            answers = dict(zip(part, ask([distinct[i] for i in part]), strict=True))
            if self.memory:
                self.memory.keep(kind, answers)
            found |= answers
        for i, request in distinct.items():
            self.cache_hook.add_partial(kind, request.args, found[i])  # type: ignore[attr-defined] - lm_eval's own --use_cache
        return [found[i] for i in ids]

    def _pair(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not continuation:
            raise ValueError("lm_eval asks for the log-probability of a continuation that is no token. Look at the task's doc_to_target and choices.")
        if len(continuation) > self.max_length:
            raise ValueError(f"lm_eval asks for a continuation of {len(continuation)} tokens, this model reads {self.max_length} at most.")
        room = self.max_length + 1 - len(continuation)  # the last token is predicted, never read
        return tuple(context[-room:]), tuple(continuation)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        pairs = [self._pair(context, continuation) for _, context, continuation in requests]
        scores = self.scorer.continuation_scores(pairs)
        for pair, score in scores.items():
            if not math.isfinite(score.sum_logprob):
                raise ValueError(f"The log-probability of a continuation of {len(pair[1])} tokens is {score.sum_logprob}. The weights are broken.")
        return [(scores[pair].sum_logprob, tuple(scores[pair].greedy) == pair[1]) for pair in pairs]

    def _rolling(self, requests: Sequence[Any]) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows, counts = [], []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            found = get_rolling_token_windows(token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
            mine = [(None, *make_disjoint_window(window)) for window in found]
            windows += mine
            counts.append(len(mine))
        scored = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scored)[0] for _ in range(count)) for count in counts]

    def _generated(self, requests: Sequence[Any]) -> list[str]:
        if self._not_applied:
            _LOG.warning("The model's generation_config.json sets %s: lm_eval's hf backend obeys it, here it is not applied.", self._not_applied)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        found = [""] * len(requests)
        for places in groups.values():
            texts = self._continued([requests[p].args[0] for p in places], requests[places[0]].args[1])
            for place, text in zip(places, texts, strict=True):
                found[place] = text
        return found

    def _continued(self, contexts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

        given = dict(normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS))
        stops, max_new_tokens = given.pop("until"), given.pop("max_gen_toks")
        other = {k: v for k, v in given.items() if k not in _WITHOUT_EFFECT and not (k in _NEUTRAL and v == _NEUTRAL[k])}
        if other:
            raise ValueError(f"A task asks for a generation with {other}; only the likeliest token is ever taken here. Use lm_eval's hf backend for it.")
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ValueError(f"A task asks for {max_new_tokens} new tokens, this model reads {self.max_length} in all. --gen_kwargs max_gen_toks=N asks less.")
        eos = None if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        stops = [*handle_stop_sequences(stops, eos=eos), _END]
        encoder = _EndingEncoder(self.tokenizer, self.ends | self._special_tokens_with(stops))
        texts = self.scorer.generate([tuple(self._encode_context(c)[-room:]) for c in contexts], max_new_tokens, stops, encoder=encoder)
        return [postprocess_generated_text(text, stops, None) for text in texts]

    def _special_tokens_with(self, stops: Sequence[str]) -> frozenset[int]:
        """Special tokens whose text holds a stop (``<|im_end|>``): they are no part of the decoded text, so they have to be stops as tokens."""
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(i for i, text in special.items() if any(stop and stop in text for stop in stops))


def _max_new_tokens(settings: Mapping[str, Any]) -> int:
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)["max_gen_toks"])


@functools.cache
def lm_class() -> type:
    """The class lm_eval takes: ``Answers`` over its TemplateLM. ModuleNotFoundError where lm_eval is not installed."""
    from lm_eval.api.model import TemplateLM

    return type("MoelineLM", (Answers, TemplateLM), {"__doc__": Answers.__doc__, "__module__": __name__})
