"""Recipes: one line of text on how each slice was made."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_OTHER_SIDE = {"start": "end", "end": "start", "length": "rest", "rest": "length"}


@dataclass(frozen=True, eq=False)
class Recipe:
    """A text with places for the figures of a slice (see `Part.figures`) and for the name of its group.

    Attributes:
      text: a format such as "window({start}, {length})".
      names: [G], what groups are called; `{group}` is the one that the figure `number` names.
    """

    text: str
    names: NDArray[Any] | None = None

    def told(self, figures: Mapping[str, int]) -> str:
        """The text for one slice."""
        named = {} if self.names is None else {"group": repr(self.names[figures["number"]].item())}
        return self.text.format(**figures, **named)

    def complement(self) -> "Recipe":
        """For what the slice leaves out: the text tells of the figures that the slice had."""
        text = re.sub(r"{(start|end|length|rest)}", lambda found: f"{{{_OTHER_SIDE[found[1]]}}}", self.text)
        # Twice is as before where the rows are computed; where they were listed, their order and copies are gone.
        computed = "{number}" not in text and "{group}" not in text
        twice = computed and text.startswith("complement(")
        return Recipe(text[len("complement(") : -1] if twice else f"complement({text})", self.names)

    @property
    def maker(self) -> str:
        """Name of the constructor, with the complements taken since."""
        inside = self.text.count("complement(")
        constructor = self.text.split("(")[inside].rstrip(")")
        return "complement(" * inside + constructor + ")" * inside

    @property
    def key(self) -> tuple[str, int]:
        """Recipes of equal key are the same."""
        return self.text, id(self.names)


@dataclass(frozen=True, eq=False)
class Recipes:
    """The recipes of H slices: a byte for each.

    Attributes:
      codes: unsigned[H], which of the recipes a slice has.
      recipes: the recipes in use.
    """

    codes: NDArray[np.unsignedinteger[Any]]
    recipes: tuple[Recipe, ...]

    @classmethod
    def of_one(cls, recipe: Recipe, num_heads: int) -> Self:
        """The same recipe for all."""
        return cls(np.zeros(num_heads, np.uint8), (recipe,))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Those of all parts, one after the other."""
        distinct = {recipe.key: recipe for part in parts for recipe in part.recipes}
        number = {key: at for at, key in enumerate(distinct)}
        kind = np.min_scalar_type(len(distinct))
        codes = [np.array([number[recipe.key] for recipe in part.recipes], kind)[part.codes] for part in parts]
        return cls(np.concatenate(codes), tuple(distinct.values()))

    def pick(self, at: NDArray[np.int64]) -> "Recipes":
        """Those at the given positions."""
        return Recipes(self.codes[at], self.recipes)

    def complement(self) -> "Recipes":
        """Those of what the slices leave out."""
        return Recipes(self.codes, tuple(recipe.complement() for recipe in self.recipes))

    def told(self, at: int, figures: Mapping[str, int]) -> str:
        """The recipe of the slice at position `at`, whose figures are given."""
        return self.recipes[int(self.codes[at])].told(figures)

    def makers(self) -> dict[str, int]:
        """Name of each constructor in use, and how many slices it made."""
        counts: dict[str, int] = {}
        for recipe, count in zip(self.recipes, np.bincount(self.codes, minlength=len(self.recipes)), strict=True):
            if count:
                counts[recipe.maker] = counts.get(recipe.maker, 0) + int(count)
        return counts
