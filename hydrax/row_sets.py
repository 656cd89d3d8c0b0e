"""Sets of rows as they come, block by block: kept as lists, or packed where lists would be large."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hydrax.row_bits import Bits, bytes_per_line, packed, unpacked
from hydrax.row_law import blocks
from hydrax.row_lists import Lists

LISTS_BYTES = 64 * 2**20  # Lists are looked up faster, so up to here they are taken even where bits are smaller.
_BLOCK_CELLS = 2**24  # Cells of a mask handled at once.

# Lines as lists: rows int32[], sorted in each line, and lengths [L]; or as words uint32[L, W].
_Segment = tuple[NDArray[np.int32], NDArray[np.int64]] | NDArray[np.uint32]


def kept_sets(
    lines: Iterable[tuple[NDArray[np.int32], NDArray[np.int64]]],
    num_rows: int,
    numbers: NDArray[np.integer] | None = None,
) -> Lists | Bits:
    """Sets as lists, or, where these would take more than 64 MiB and bits take less, as bits.

    While they come no more is held than the smaller of the two takes, and 64 MiB. Either way rows come in base order.

    Args:
      lines: blocks of lines, (the rows of all lines one after the other, the length of each line); the rows of a line
        are sorted and distinct.
      num_rows: N.
      numbers: int[L], what the maker calls the lines; None: 0, 1, ...
    """
    segments: list[_Segment] = []
    num_lines = listed_bytes = 0
    for rows, lengths in lines:
        num_lines += lengths.size
        listed_bytes += rows.nbytes
        packs = listed_bytes > LISTS_BYTES and rows.nbytes > lengths.size * bytes_per_line(num_rows)
        segments.append(_packed(rows, lengths, num_rows) if packs else (rows, lengths))
    numbers = np.arange(num_lines) if numbers is None else numbers
    if listed_bytes > LISTS_BYTES and listed_bytes > num_lines * bytes_per_line(num_rows):
        return Bits.of(num_rows, _all_packed(segments, num_lines, num_rows), numbers=numbers)
    flat = [_listed(segment, num_rows) if isinstance(segment, np.ndarray) else segment for segment in segments]
    all_rows, all_lengths = (np.concatenate([segment[k] for segment in flat]) for k in (0, 1))
    return Lists.of(num_rows, all_rows.astype(np.int32), all_lengths, numbers=numbers, are_sets=True)


def mask_lines(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The lines of a mask, bool[L, N], as `kept_sets` takes them."""
    return np.nonzero(mask)[1].astype(np.int32), np.count_nonzero(mask, axis=1)


def mask_blocks(num_lines: int, num_rows: int) -> Iterable[NDArray[np.int64]]:
    """Blocks of lines whose masks are handled at once."""
    return blocks(np.full(num_lines, num_rows), _BLOCK_CELLS)


def _packed(rows: NDArray[np.int32], lengths: NDArray[np.int64], num_rows: int) -> NDArray[np.uint32]:
    ends = np.cumsum(lengths)
    words = []
    for block in mask_blocks(lengths.size, num_rows):
        mask = np.zeros((block.size, num_rows), np.bool_)
        first, last = ends[block[0]] - lengths[block[0]], ends[block[-1]]
        mask[np.repeat(np.arange(block.size), lengths[block]), rows[first:last]] = True
        words.append(packed(mask))
    return np.concatenate(words)


def _all_packed(segments: list[_Segment], num_lines: int, num_rows: int) -> NDArray[np.uint32]:
    """All segments as words. Empties the list as it goes, so that lines are not held twice."""
    words, at = None, num_lines
    while segments:
        segment = segments.pop()
        lines = segment if isinstance(segment, np.ndarray) else _packed(*segment, num_rows)
        words = np.empty((num_lines, lines.shape[1]), np.uint32) if words is None else words
        at -= len(lines)
        words[at : at + len(lines)] = lines
    assert words is not None  # Only what is large gets here.
    return words


def _listed(words: NDArray[np.uint32], num_rows: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    parts = [mask_lines(unpacked(words[block], num_rows)) for block in mask_blocks(len(words), num_rows)]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([lengths for _, lengths in parts])
