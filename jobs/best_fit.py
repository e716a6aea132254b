"""Best-fit decreasing: items into bins of one capacity, the longest first, each into the fullest bin that still has room.

Packing documents this way cuts none that fits a sequence (Ding et al. 2024, Fewer Truncations Improve Language Modeling, arXiv 2404.10830).
Change here: which items share a bin. Not here: what becomes of the bins (jobs/stages/pack.py).
"""

from __future__ import annotations

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of item numbers, in the order they were opened; items of a bin in ascending number.

    Of equally long items the first comes first, of equally full bins the one that changed last. Sorting aside, an item costs one search in
    a set of at most ``capacity`` room sizes, kept as the bits of one integer. Raises ValueError for an item longer than ``capacity`` or
    below 1.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
        raise ValueError(f"Items of {lengths.min()} to {lengths.max()} tokens do not all fit in bins of 1 to {capacity}: cut them first.")
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room left -> bins
    rooms = 0  # bit r: some bin has room for exactly r
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            place = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, place = capacity, len(bins)
            bins.append([])
        bins[place].append(item)
        if left := room - length:
            with_room[left].append(place)
            rooms |= 1 << left
    return [sorted(items) for items in bins]
