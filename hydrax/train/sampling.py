"""Sampling: the rows that heads meet in a fit, and who draws them. It depends on data and settings, not on the plan."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from hydrax.data import Batches, Dataset, Feed, GrainBatches, ProgramBatches, TrainingSet, open_feed
from hydrax.engine import Layout, OwnRotation, SharedRotation
from hydrax.errors import DataError, SliceError
from hydrax.slices import RowLaw, Slices, rotation
from hydrax.train.settings import Settings

if TYPE_CHECKING:
    import grain

_MAX_LIST_BYTES = 2**26  # Most that the rows of a chunk may take if the program looks them up in advance.
_MAX_TABLE_BYTES = 2**28  # Most that the tables of slices may take on the device.


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The index batches of a fit. Exactly one of `law`, `members` and `index` is given: it says who draws them.

    Attributes:
      settings: the Trainer's settings, among them seed, sampling and budget.
      rows: the training rows and slices.
      law: how the program finds the rows of a head, with own sampling.
      members: uint8[H, N / 8], how the program finds the heads of a row, with shared sampling.
      index: the index batches that the host draws.
      batch_size: slots B.
      padding: why a slot can be padding, or None.
    """

    settings: Settings
    rows: TrainingSet
    law: RowLaw | None
    members: np.ndarray | None
    index: grain.MapDataset | None
    batch_size: int
    padding: str | None

    @property
    def data(self) -> Dataset:
        """The training dataset."""
        return self.rows.data

    @property
    def slices(self) -> Slices:
        """The heads' slices."""
        return self.rows.slices

    @property
    def shared(self) -> bool:
        """Whether all heads meet the same rows."""
        return self.settings.sampling == "shared"

    @property
    def may_pad(self) -> bool:
        """Whether the settings allow a slot to be padding, whatever the lengths of the slices."""
        return self.rows.has_own_index or self.settings.passes is not None or self.rows.small_slices == "mask"

    @property
    def may_idle(self) -> bool:
        """Whether a step may leave a head without a live slot."""
        return self.shared or self.settings.passes is not None

    @property
    def lengths(self) -> np.ndarray:
        """Rows per pass of each head, int32[H]."""
        # With shared sampling every head walks the whole dataset, and learns from the rows in its slice.
        return np.full_like(self.slices.lengths, self.slices.num_rows) if self.shared else self.slices.lengths

    @property
    def batches_per_epoch(self) -> int:
        """Batches in the longest pass."""
        return -(-int(self.lengths.max()) // self.batch_size)

    @property
    def frozen(self) -> int | None:
        """How many first batches are repeated over and over (`overfit_batches`), or None."""
        return self.settings.limit("train", self.batches_per_epoch) if self.settings.overfit_batches else None

    @property
    def own_batches(self) -> np.ndarray | None:
        """Batches that each head needs for its passes, int64[H]; None without that budget."""
        passes = self.settings.passes
        if passes is None:
            return None
        return rotation.batches_of(passes, self.lengths, self.batch_size, self.rows.small_slices)

    @property
    def drawn_on_host(self) -> bool:
        """Whether the host knows the index batches of all heads, because it draws them or fetches their rows."""
        return self.index is not None or self.data.reader is not None

    def feed(self, layout: Layout, max_steps: int) -> Feed:
        """Opens the feed of the program.

        Args:
          layout: layout of the heads.
          max_steps: most steps of a superstep.
        """
        batches = max_steps * self.settings.most_batches
        max_rows = batches * self.batch_size * (1 if self.shared else len(self.slices))
        make = functools.partial(self._batches, max_steps=max_steps, chunk=layout.chunk)
        return open_feed(self.data, make, layout, max_rows, self.slices.ids)

    def _batches(self, places: np.ndarray, max_steps: int, chunk: int) -> Batches:
        """Makes the index batches of the heads at these places, int[places]."""
        accumulate = self.settings.most_batches
        if self.index is not None:
            return GrainBatches(
                self.index if self.frozen is None else self.index[: self.frozen].repeat(),
                num_rows=self.data.num_rows,
                places=places,
                max_steps=max_steps,
                accumulate=accumulate,
                shared=self.shared,
            )
        draw: OwnRotation | SharedRotation
        order = rotation.order(self.lengths, self.batch_size, self.rows.small_slices)
        if self.law is not None:
            columns = {name: column[places] for name, column in self.law.columns.items()}
            fixed: dict[str, Any] = {"columns": columns, "tables": self.law.tables}
            listed = self._listed(self.law, max_steps * accumulate, chunk)
            draw, lengths = OwnRotation(self.law.take, self.batch_size, order, listed), self.lengths[places]
        else:
            assert self.members is not None
            fixed = {"members": self.members[places]}
            # All heads share one rotation, hence one length.
            draw, lengths = SharedRotation(self.batch_size, order), self.lengths[:1]
        return ProgramBatches(
            draw,
            fixed,
            lengths,
            max_steps=max_steps,
            accumulate=accumulate,
            seed=self.settings.seed,
            small_slices=self.rows.small_slices,
            passes=self.settings.passes,
            frozen=self.frozen,
        )

    def _listed(self, law: RowLaw, batches: int, chunk: int) -> int | None:
        """Returns how many offsets of each head the program looks up once per superstep; None if that does not pay."""
        # A power of two, so that slices of about the same length need no other program.
        longest = 2 ** int(self.lengths.max() - 1).bit_length()
        pays = not law.is_cheap and longest <= batches * self.batch_size
        return longest if pays and 4 * chunk * longest <= _MAX_LIST_BYTES else None


def open_sampling(settings: Settings, rows: TrainingSet) -> Sampling:
    """Decides who draws the index batches, and checks slices, budget and the first batch against each other."""
    shared, data, slices = settings.sampling == "shared", rows.data, rows.slices
    if shared and slices.has_repeats:
        raise SliceError(
            f'sampling="shared" requires slices without repeated rows: {rows.source}.slices. Got {slices!r}, expected '
            'slices that hold each row once. Fix: pass sampling="own", as for a bootstrap.'
        )
    # The program can draw the rotation of the base class, but not what a user's method returns.
    # Rows to fetch are drawn ahead of their superstep; on an accelerator, a program that draws them would have to wait
    # until the superstep before it has ended.
    in_program = not rows.has_own_index and (data.reader is None or jax.default_backend() == "cpu")
    law = _law(slices) if in_program and not shared else None
    members = _members(slices) if in_program and shared else None
    index = _index_dataset(settings, rows) if law is None and members is None else None
    sampling = Sampling(settings, rows, law, members, index, rows.batch_size, None)
    live = rotation.cursor(0, sampling.lengths, rows.batch_size, rows.small_slices).width
    slots = rows.batch_size
    if rows.has_own_index and index is not None:  # the user's batches may have another number of slots
        probe = GrainBatches(index, num_rows=data.num_rows, places=np.arange(len(slices)), max_steps=1, shared=shared)
        mask = probe.superstep(0, [1])["mask"][0]
        probe.close()
        live, slots = mask.sum(axis=1), mask.shape[1]
    return dataclasses.replace(sampling, batch_size=slots, padding=_padding(settings, slices, live, slots))


def _law(slices: Slices) -> RowLaw | None:
    law = slices.law()
    # Large lists are better drawn on the host than copied to every device.
    small = law is not None and sum(table.nbytes for table in law.tables.values()) <= _MAX_TABLE_BYTES
    return law if small else None


def _members(slices: Slices) -> np.ndarray | None:
    """Packs each head's rows into bits, uint8[H, N / 8], the lowest bit first; None if they would take too much."""
    row_bytes = -(-slices.num_rows // 8)
    if len(slices) * row_bytes > _MAX_TABLE_BYTES // 4:
        return None
    members = np.empty((len(slices), row_bytes), np.uint8)
    # In blocks of 16 MB: the mask of all heads would take eight times as much as the result.
    block = max(1, 2**24 // slices.num_rows)
    for first in range(0, len(slices), block):
        mask = slices.mask(slice(first, first + block))
        members[first : first + block] = np.packbits(mask, axis=1, bitorder="little")
    return members


def _index_dataset(settings: Settings, rows: TrainingSet) -> grain.MapDataset:
    name = f"{rows.source}.index_dataset"
    asked: dict[str, Any] = {}
    # Only what differs from the default is passed on, so that an index_dataset without these arguments keeps working.
    if settings.sampling != "own":
        asked["sampling"] = settings.sampling
    if settings.passes is not None:
        asked["passes"] = settings.passes
    known = inspect.signature(rows.index_dataset).parameters
    missing = [argument for argument in asked if argument not in known]
    if missing:
        raise DataError(
            f"index_dataset does not accept {missing[0]}: {name}. Got {', '.join(known)}, expected {missing[0]} too, "
            f"since it is {asked[missing[0]]!r}. Fix: accept it as an argument, or remove it from the Trainer."
        )
    index = rows.index_dataset(settings.seed, **asked)
    import grain  # late, as in hydrax/data/datamodule.py

    if not isinstance(index, grain.MapDataset):
        raise DataError(
            f"Index batches have the wrong type: {name}. Got {type(index).__name__}, expected a grain.MapDataset. Fix: "
            "build it with grain.MapDataset.source(...)."
        )
    return index


def _padding(settings: Settings, slices: Slices, live: np.ndarray, slots: int) -> str | None:
    """Says why a slot can be padding, or None; `live` counts each head's live slots in the first batch, int[H]."""
    shortest = int(np.argmin(slices.lengths))
    if settings.sampling == "shared" and slices.lengths[shortest] < slices.num_rows:
        owned = f"{slices.lengths[shortest]} of the {slices.num_rows} rows that all heads meet"
        return f"head {slices.ids[shortest]} owns {owned}"
    head = int(np.argmin(live))
    if live[head] < slots:
        return f"head {slices.ids[head]} has {live[head]} rows for {slots} slots"
    return "a head's last batch ends with its passes" if settings.passes is not None else None
