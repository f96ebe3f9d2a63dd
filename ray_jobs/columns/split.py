"""Which rows are for the test: told by the row itself, so neither order nor files matter, and doubles stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

EMPTY = 0x9E3779B97F4A7C15


def mixed(words: Any) -> Any:
    """Every bit of a word depends on all of them (the finalizer of SplitMix64)."""
    import numpy

    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> numpy.uint64(shift))) * numpy.uint64(factor)
    return words ^ (words >> numpy.uint64(31))


def words(values: Any) -> Any:
    """One 64-bit word for each value of a column."""
    import numpy
    import pyarrow
    from pyarrow import compute, types

    if types.is_string(values.type):
        coded = values.dictionary_encode()
        texts = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in coded.dictionary.to_pylist()]
        table = numpy.array([*(int.from_bytes(text, "little") for text in texts), EMPTY], numpy.uint64)
        return table[coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)]
    if types.is_timestamp(values.type):
        values = compute.cast(values, pyarrow.int64())
    empty = compute.is_null(values).to_numpy(zero_copy_only=False)
    plain = values.fill_null(False if types.is_boolean(values.type) else 0).to_numpy(zero_copy_only=False)
    # 0.0: -0.0 is the same number.
    plain = plain + 0.0 if types.is_floating(values.type) else plain.astype(numpy.int64)
    return numpy.where(empty, numpy.uint64(EMPTY), plain.view(numpy.uint64))


def for_test(table: Any, names: Iterable[str], seed: int, share: float) -> Any:
    """True for so large a share of all possible rows."""
    import numpy

    total = numpy.full(table.num_rows, seed % 2**64, numpy.uint64)
    for name in sorted(names):
        total = mixed(mixed(words(table[name].combine_chunks())) + total)
    return total < numpy.uint64(int(share * 2**64))
