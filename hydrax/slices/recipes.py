"""Recipes: how each slice was made, kept as data and formatted as one line of text for the user."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_OTHER_SIDE = {"start": "end", "end": "start", "length": "rest", "rest": "length"}


@dataclass(frozen=True, eq=False)
class Recipe:
    """How one constructor made slices; `format` gives text such as "complement(window(100, 37))".

    Attributes:
      maker: name of the constructor.
      fields: the figures to show of each slice, in this order: names from `Part.figures`, or "group".
      settings: text to show after the figures, equal for all slices of the call, such as "alpha=5, seed=0".
      names: [G], the names of all groups. A slice has the one at its figure "number"; the field "group" shows it.
      flips: how many complements were taken since.
    """

    maker: str
    fields: tuple[str, ...] = ()
    settings: str = ""
    names: NDArray[Any] | None = None
    flips: int = 0

    def format(self, figures: Mapping[str, NDArray[Any]]) -> NDArray[np.object_]:
        """Write the recipes of K slices with the given figures, [K] each; equal texts are one object."""
        columns = [figures[self._figure(field)].astype(np.int64) for field in self.fields]
        # Of a million slices many have the same recipe: one text serves them all. Figures are below 2**31, and a
        # recipe shows two of them at most.
        key = functools.reduce(lambda known, column: known << 31 | column, columns, np.zeros_like(figures["length"]))
        _, first, place = np.unique(key, return_index=True, return_inverse=True)
        texts = [self._write(row) for row in zip(*(column[first].tolist() for column in columns), strict=True)]
        return np.array(texts or [self._write(())], np.object_)[place]

    def _figure(self, field: str) -> str:
        # Figures describe the rows held now. After an odd number of complements those are the rows left out by what
        # the constructor made, and the recipe shows what the constructor was given.
        figure = "number" if field == "group" else field
        return _OTHER_SIDE.get(figure, figure) if self.flips % 2 else figure

    def _write(self, row: Sequence[int]) -> str:
        shown = [self._shown(*shown) for shown in zip(self.fields, row, strict=True)]
        shown += [self.settings] * bool(self.settings)
        return self._flipped(f"{self.maker}({', '.join(shown)})" if shown else self.maker)

    def _shown(self, field: str, figure: int) -> str:
        if field == "group":
            assert self.names is not None
            return repr(self.names[figure].item())
        return str(figure)

    def _flipped(self, text: str) -> str:
        return "complement(" * self.flips + text + ")" * self.flips

    def complement(self) -> "Recipe":
        """Return the recipe of the complement."""
        # Two complements restore a slice that is computed. A listed one comes back sorted and without its copies, so
        # its recipe shows both.
        is_listed = not {"number", "group"}.isdisjoint(self.fields)
        return replace(self, flips=self.flips + 1 if is_listed else 1 - self.flips)

    @property
    def kind(self) -> str:
        """Name of the constructor, with the complements taken since."""
        return self._flipped(self.maker)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal recipes. Names are compared by identity, as there may be a million groups."""
        return self.maker, self.fields, self.settings, self.flips, id(self.names)


@dataclass(frozen=True, eq=False)
class Recipes:
    """The recipes of H slices, in one byte per slice.

    Attributes:
      codes: unsigned[H], position in `recipes` of the recipe of each slice.
      recipes: the distinct recipes in use.
    """

    codes: NDArray[np.unsignedinteger[Any]]
    recipes: tuple[Recipe, ...]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the recipes of all parts."""
        distinct = {recipe.key: recipe for part in parts for recipe in part.recipes}
        number = {key: at for at, key in enumerate(distinct)}
        kind = np.min_scalar_type(len(distinct))
        codes = [np.array([number[recipe.key] for recipe in part.recipes], kind)[part.codes] for part in parts]
        return cls(np.concatenate(codes), tuple(distinct.values()))

    def pick(self, at: NDArray[np.int64]) -> "Recipes":
        """Select the recipes at the given positions."""
        return Recipes(self.codes[at], self.recipes)

    def complement(self) -> "Recipes":
        """Return the recipes of the complements."""
        return Recipes(self.codes, tuple(recipe.complement() for recipe in self.recipes))

    def kinds(self) -> dict[str, int]:
        """Count the slices by kind of recipe, such as "complement(bootstrap)"."""
        counts: dict[str, int] = {}
        for recipe, count in zip(self.recipes, np.bincount(self.codes, minlength=len(self.recipes)), strict=True):
            if count:
                counts[recipe.kind] = counts.get(recipe.kind, 0) + int(count)
        return counts
