"""Chooses how to keep sets of rows that arrive block by block: as lists, as lists of the rows left out, or as bits."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.bits import Bits, bytes_per_line, packed, unpacked
from hydrax.slices.law import blocks
from hydrax.slices.lists import Lists, Unlisted

LISTS_BYTES = 64 * 2**20  # Lookup in lists is faster, so up to this size they are taken even where bits are smaller.
_BLOCK_CELLS = 2**24  # Cells of a mask to handle at once.


class _Held(NamedTuple):
    """Lines as the rows that each holds: sorted, line after line, and the length of each line [L]."""

    rows: NDArray[np.int32]
    lengths: NDArray[np.int64]


class _Left(NamedTuple):
    """Lines as the rows that each leaves out, in the same form."""

    rows: NDArray[np.int32]
    lengths: NDArray[np.int64]


_Segment = _Held | _Left | NDArray[np.uint32]  # The array has the lines as words, uint32[L, W].
_Kind = type[Lists] | type[Unlisted] | type[Bits]


class KeptSets:
    """Keeps sets as lists or, where these would take more than 64 MiB, in the smallest of the three ways.

    While the lines arrive, memory stays below the smallest way plus 64 MiB. Rows are in base order in each way.

    Args:
      num_rows: rows of the base dataset, N.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_lines, self._num_rows = 0, num_rows
        self._segments: list[_Segment] = []
        self._sizes: dict[_Kind, int] = {Lists: 0, Unlisted: 0, Bits: 0}

    def add(self, rows: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        """Add a block of lines.

        Args:
          rows: the rows of all lines one after the other; those of a line are sorted and distinct.
          lengths: the length of each line.
        """
        self.num_lines += lengths.size
        # Each block is put into the way that is smallest for it alone. The way for all is known only at the end.
        own = _sizes(rows.size, lengths.size, self._num_rows)
        self._sizes = {kind: size + own[kind] for kind, size in self._sizes.items()}
        kind = min(own, key=own.__getitem__) if self._sizes[Lists] > LISTS_BYTES else Lists
        self._segments.append(_as(kind, _Held(rows, lengths), self._num_rows))

    def part(self, numbers: NDArray[np.integer] | None = None) -> Lists | Unlisted | Bits:
        """Return all lines; no more can be added.

        Args:
          numbers: int[L], the numbers that recipes show; if None, 0, 1, ...
        """
        sizes, num_rows = self._sizes, self._num_rows
        # Lists win up to 64 MiB even if they are larger: a lookup in them is one gather and not a search.
        numbers = np.arange(self.num_lines) if numbers is None else numbers
        kind = min(sizes, key=sizes.__getitem__) if sizes[Lists] > LISTS_BYTES else Lists
        if kind is Bits:
            return Bits.of(num_rows, _all_packed(self._segments, self.num_lines, num_rows), numbers=numbers)
        flat = [_as(kind, segment, num_rows) for segment in self._segments]
        all_rows, all_lengths = (np.concatenate([segment[k] for segment in flat]) for k in (0, 1))
        lists = Lists.of(num_rows, all_rows.astype(np.int32), all_lengths, numbers=numbers, are_sets=True)
        return lists if kind is Lists else lists.complement()


def kept_sets(
    lines: Iterable[tuple[NDArray[np.int32], NDArray[np.int64]]],
    num_rows: int,
    numbers: NDArray[np.integer] | None = None,
) -> Lists | Unlisted | Bits:
    """Keep sets that come as blocks of lines; arguments as those of `KeptSets`."""
    kept = KeptSets(num_rows)
    for rows, lengths in lines:
        kept.add(rows, lengths)
    return kept.part(numbers)


def _sizes(num_held: int, num_lines: int, num_rows: int) -> dict[_Kind, int]:
    """Return the bytes that lines take in each way."""
    left_out = num_lines * num_rows - num_held
    return {Lists: 4 * num_held, Unlisted: 4 * left_out, Bits: num_lines * bytes_per_line(num_rows)}


def mask_lines(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the lines of a mask, bool[L, N], in the form that `kept_sets` takes."""
    return np.nonzero(mask)[1].astype(np.int32), np.count_nonzero(mask, axis=1)


def mask_blocks(num_lines: int, num_rows: int) -> Iterable[NDArray[np.int64]]:
    """Split lines into blocks whose masks are small enough to be handled at once."""
    return blocks(np.full(num_lines, num_rows), _BLOCK_CELLS)


def _masks(segment: _Segment, num_rows: int) -> Iterator[NDArray[np.bool_]]:
    """Yield the lines as blocks of masks, bool[L, N]."""
    if isinstance(segment, np.ndarray):
        yield from (unpacked(segment[block], num_rows) for block in mask_blocks(len(segment), num_rows))
        return
    rows, lengths = segment
    ends, holds = np.cumsum(lengths), isinstance(segment, _Held)
    for block in mask_blocks(lengths.size, num_rows):
        mask = np.full((block.size, num_rows), not holds)
        first, last = ends[block[0]] - lengths[block[0]], ends[block[-1]]
        mask[np.repeat(np.arange(block.size), lengths[block]), rows[first:last]] = holds
        yield mask


def _as(kind: _Kind, segment: _Segment, num_rows: int) -> _Segment:
    """Convert lines to the form that a part of the given kind is made of."""
    if kind is Bits:
        return _as_words(segment, num_rows)
    form = _Held if kind is Lists else _Left
    if isinstance(segment, form):
        return segment
    # Through masks of a few lines at a time: a mask of all lines could be larger than memory.
    parts = [mask_lines(mask if kind is Lists else ~mask) for mask in _masks(segment, num_rows)]
    return form(np.concatenate([rows for rows, _ in parts]), np.concatenate([lengths for _, lengths in parts]))


def _as_words(segment: _Segment, num_rows: int) -> NDArray[np.uint32]:
    if isinstance(segment, np.ndarray):
        return segment
    return np.concatenate([packed(mask) for mask in _masks(segment, num_rows)])


def _all_packed(segments: list[_Segment], num_lines: int, num_rows: int) -> NDArray[np.uint32]:
    """Convert all segments to words. It empties the list, so that no line is held twice."""
    words, at = None, num_lines
    while segments:
        lines = _as_words(segments.pop(), num_rows)
        words = np.empty((num_lines, lines.shape[1]), np.uint32) if words is None else words
        at -= len(lines)
        words[at : at + len(lines)] = lines
    assert words is not None  # There is at least one segment: bits are chosen above 64 MiB only.
    return words
