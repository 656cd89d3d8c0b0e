"""Packed bits: slices kept as one bit per row of the dataset, where lists would take more memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.law import Array, Figures, Part, RowLaw, blocks, count_while, per_head, strides
from hydrax.slices.lists import shared_tables

# Words of 32 bits per entry of the directory `before`. It adds an eighth to the bits and limits a lookup to 8 words.
_BLOCK_WORDS = 8
_ONE, _BLOCK_BITS = np.uint32(1), np.uint32(32 * _BLOCK_WORDS)
_BLOCK = np.uint32(_BLOCK_WORDS)


def bytes_per_line(num_rows: int) -> int:
    """Return the bytes that a line of `Bits` takes, with its share of the directory."""
    return -(-num_rows // int(_BLOCK_BITS)) * 4 * (_BLOCK_WORDS + 1)


def packed(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Pack bool[L, N] into whole blocks of words, uint32[L, W]: the first row in the lowest bit, zeros at the end."""
    num_bytes = -(-mask.shape[1] // int(_BLOCK_BITS)) * 4 * _BLOCK_WORDS
    # In a turned line the zeros at the end become ones, but beyond its length, where no offset looks.
    table = np.zeros((len(mask), num_bytes), np.uint8)
    bits = np.packbits(mask, axis=1, bitorder="little")
    table[:, : bits.shape[1]] = bits
    return table.view("<u4").astype(np.uint32, copy=False)


def unpacked(words: NDArray[np.uint32], num_rows: int) -> NDArray[np.bool_]:
    """Unpack words uint32[L, W] to bool[L, N]."""
    table = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    return np.unpackbits(table, axis=1, count=num_rows, bitorder="little").view(np.bool_)


@dataclass(frozen=True, eq=False)
class Bits(Part):
    """The rows whose bit is set, in base order. A line and its complement share their bits: one of them is turned.

    Attributes:
      words: uint32[T, W], T sets of bits.
      before: uint32[T, W / 8], how many bits of the set are 1 before each block of 8 words.
      lines: int32[L], which of the T sets each line has.
      turned: bool[L], whether a line holds the rows whose bit is 0.
      numbers: int32[L], the number that the recipe of each line shows: of the split, of rows.
    """

    code: ClassVar[int] = 4
    per_line: ClassVar[tuple[str, ...]] = ("lengths", "lines", "turned", "numbers")
    marks: ClassVar[tuple[str | None, str | None]] = ("turned", None)

    words: NDArray[np.uint32]
    before: NDArray[np.uint32]
    lines: NDArray[np.int32]
    turned: NDArray[np.bool_]
    numbers: NDArray[np.int32]

    @classmethod
    def of(cls, num_rows: int, words: NDArray[np.uint32], *, numbers: NDArray[np.integer]) -> Self:
        """Make one line for each line of words."""
        before = np.empty((len(words), words.shape[1] // _BLOCK_WORDS), np.uint32)
        lengths = np.empty(len(words), np.int32)
        for block in blocks(np.full(len(words), words.shape[1])):
            counts = np.bitwise_count(words[block]).reshape(block.size, -1, _BLOCK_WORDS).sum(axis=2, dtype=np.int64)
            before[block] = np.cumsum(counts, axis=1) - counts
            lengths[block] = counts.sum(axis=1)
        lines, turned = np.arange(len(words), dtype=np.int32), np.zeros(len(words), np.bool_)
        return cls(num_rows, lengths, words, before, lines, turned, numbers.astype(np.int32))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        words, begins = shared_tables([part.words for part in parts])
        before, _ = shared_tables([part.before for part in parts])
        lines = [part.lines + np.int32(begin) for part, begin in zip(parts, begins, strict=True)]
        return cls._joined(parts, words=words, before=before, lines=np.concatenate(lines))

    def law(self) -> RowLaw:
        turn = np.where(self.turned, np.uint32(0xFFFFFFFF), np.uint32(0))
        tables = {"words": self.words, "before": self.before, "strides": strides(self.before.shape[1] - 1)}
        return RowLaw({"lines": self.lines, "turn": turn}, tables, _take_bit)

    def contains(self, at: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        word = self.words[self.lines[at][:, None], (rows >> 5)[None]]
        is_set: NDArray[np.bool_] = (word >> (rows & 31).astype(np.uint32)) & _ONE != 0
        return is_set ^ self.turned[at][:, None]

    def complement(self) -> Self:
        return replace(self, lengths=np.int32(self.num_rows) - self.lengths, turned=~self.turned)

    def figures(self, at: NDArray[np.int64]) -> Figures:
        return super().figures(at) | {"number": self.numbers[at]}

    def content(self) -> Iterator[bytes]:
        return (self.words[line].astype("<u4").tobytes() for line in self.lines)


def _take_bit(columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType) -> Array:
    """Find the position of 1-bit number `offset` (a select): its block, then its word, then its place in the word."""
    line = xp.broadcast_to(per_head(columns["lines"], offsets), offsets.shape)
    turn = per_head(columns["turn"], offsets)  # All ones for turned lines, so that xor makes ones of their zeros.
    words, num_blocks = tables["words"], np.uint32(tables["before"].shape[1])

    def counted_before(block: Array) -> Array:
        count = tables["before"][line, xp.minimum(block, num_blocks - _ONE).astype(xp.int32)]
        return xp.where(turn != 0, block * _BLOCK_BITS - count, count)

    def begun(block: Array) -> Array:
        return (block < num_blocks) & (counted_before(block) <= offsets)

    # Block: a binary search over the directory.
    block = count_while(begun, tables["strides"], offsets, xp)
    left, place = offsets - counted_before(block), (block * _BLOCK).astype(xp.int32)
    # Word: skip words as long as they hold too few ones. The count of steps is fixed, as a program needs.
    word = words[line, place] ^ turn
    for _ in range(_BLOCK_WORDS - 1):
        count = xp.bitwise_count(word).astype(xp.uint32)
        further = left >= count
        left = xp.where(further, left - count, left)
        place = place + further.astype(xp.int32)
        word = words[line, place] ^ turn
    # Bit: halve the word five times, each time keeping the half that holds the wanted bit.
    bit = xp.zeros(offsets.shape, xp.uint32)
    for width in (16, 8, 4, 2, 1):
        count = xp.bitwise_count(word & np.uint32((1 << width) - 1)).astype(xp.uint32)
        further = left >= count
        left = xp.where(further, left - count, left)
        word = xp.where(further, word >> np.uint32(width), word)
        bit = bit + further.astype(xp.uint32) * np.uint32(width)
    return (place.astype(xp.uint32) * np.uint32(32) + bit).astype(xp.int32)
