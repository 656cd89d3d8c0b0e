"""Draws with replacement: every row is computed from the seed and the number of the draw."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hydrax.slices.bits import Bits
from hydrax.slices.law import Array, Figures, Part, RowLaw, per_head
from hydrax.slices.lists import Lists, Unlisted
from hydrax.slices.permutation import GOLDEN, mix, multiply_high
from hydrax.slices.sets import kept_sets, mask_blocks, mask_lines

_SALT = np.uint32(0xB007)  # Separates the draws from the orders of other parts with the same seed, see `windows.py`.
_U16, _LOW_HALF = np.uint32(16), np.uint32(0xFFFF)


@dataclass(frozen=True, eq=False)
class Draws(Part):
    """Rows drawn with replacement: draw j is a hash of (seed, j), scaled to [0, N), so draws take no memory.

    2**32 hashes fall on N rows, so the probability of a row differs from 1 / N by less than 2**-32.

    Attributes:
      keys: uint32[L], the seeds.
    """

    code: ClassVar[int] = 6
    per_line: ClassVar[tuple[str, ...]] = ("lengths", "keys")
    marks: ClassVar[tuple[str | None, str | None]] = (None, "keys")

    keys: NDArray[np.uint32]

    def law(self) -> RowLaw:
        return RowLaw({"keys": self.keys}, {"num_rows": np.asarray(self.num_rows, np.uint32)}, _take_drawn)

    def complement(self) -> Lists | Unlisted | Bits:
        # No formula gives the rows that were never drawn, so they are kept.
        return kept_sets(self._never_drawn(), self.num_rows, numbers=self.lengths)

    def _never_drawn(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        for block in mask_blocks(self.lengths.size, self.num_rows):
            left = np.ones((block.size, self.num_rows), np.bool_)
            for line, rows in self.pick(block).walk():
                left[line, rows] = False
            yield mask_lines(left)

    @property
    def has_repeats(self) -> bool:
        return True

    def figures(self, at: NDArray[np.int64]) -> Figures:
        # As "number" it survives a complement, which is kept in another way and cannot tell how many draws there were.
        return super().figures(at) | {"number": self.lengths[at]}


def _take_drawn(columns: Mapping[str, Array], tables: Mapping[str, Array], offsets: Array, xp: ModuleType) -> Array:
    head = mix(per_head(columns["keys"], offsets) ^ _SALT, xp)
    draw = mix(head ^ mix(offsets ^ GOLDEN, xp), xp)
    num_rows = tables["num_rows"]
    return multiply_high(draw, num_rows >> _U16, num_rows & _LOW_HALF).astype(xp.int32)
