"""How long best-fit packing takes per document, by how many there are: it must not grow with them."""

from __future__ import annotations

import time

import numpy as np

from jobs.best_fit import best_fit

SEQ_LEN = 2048


def test_microseconds_per_document():
    rng = np.random.default_rng(0)
    print(f"\nbest fit, sequences of {SEQ_LEN} tokens")
    for count in (20_000, 100_000, 200_000, 1_000_000):
        lengths = np.minimum(SEQ_LEN, rng.lognormal(5.5, 1.2, count).astype(np.int64) + 1)
        began = time.process_time()
        bins = best_fit(lengths, SEQ_LEN)
        spent = time.process_time() - began
        print(f"  {count:>9,} documents: {spent / count * 1e6:5.2f} us each, {1 - lengths.sum() / (len(bins) * SEQ_LEN):.4%} empty")
