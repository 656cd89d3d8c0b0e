"""Warm start: a fit that begins with given weights instead of those of `configure_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydrax import checkpoint
from hydrax.errors import ArgumentError
from hydrax.files import as_path
from hydrax.results import Heads
from hydrax.step import Preflight, split
from hydrax.trees import dotted, is_key, leaves_by_path


class Start(NamedTuple):
    """The weights that the heads of a fit begin with.

    Attributes:
      parts: `(trainable, state)` as the module has them, NumPy leaves `[H, ...]`; None in place of arrays that are
        fresh in each head, such as PRNG keys.
      origins: for each head where its weights are from, for the ledger.
    """

    parts: Any
    origins: list[str]


class _Given(NamedTuple):
    """Weights as they were given.

    Attributes:
      source: where they are from.
      ids: int[n], the ids of their heads; None if they are one model's.
      arrays: `[n, ...]` by dotted name.
    """

    source: str
    ids: np.ndarray | None
    arrays: Mapping[str, Any]


def find_start(init_from: Any, flight: Preflight, ids: np.ndarray) -> Start:
    """Reads the weights that a fit is to begin with, and checks that they are those of its model.

    Args:
      init_from: the argument of `Trainer.fit`, but for the names of checkpoints.
      flight: shapes of the fit's own model.
      ids: int32[H], the ids of the fit's heads.

    Raises:
      ArgumentError: it is nothing to start from, or has other arrays or another number of heads.
      CheckpointError: there is no checkpoint at the path, or it is damaged.
    """
    given = _read(init_from)
    at = _places(given, ids)
    expected = _by_name(*flight.parts)
    _check_names(given, expected)
    # Keys are fresh: a head that draws what another has drawn would learn nothing new from it.
    found = iter([None if is_key(leaf) else _taken(given, name, leaf, at) for name, leaf in expected.items()])
    parts = jax.tree.map(lambda _: next(found), tuple(flight.parts))
    of_head = [""] * len(ids) if given.ids is None else [f", head {head}" for head in given.ids[at].tolist()]
    return Start(parts, [f"{given.source}{head}" for head in of_head])


def _read(init_from: Any) -> _Given:
    if isinstance(init_from, str | Path):

        def read(step: Path) -> _Given:
            ids = np.asarray(checkpoint.read_meta(step)["ids"])
            return _Given(str(init_from), ids, checkpoint.load_models(step))

        return checkpoint.first_sound(as_path("Trainer.fit(init_from=)", init_from), read)
    if isinstance(init_from, Heads):
        return _Given("given heads", init_from.ids, _by_name(init_from.trainable, init_from.state))
    parts = split(init_from)
    if not jax.tree.leaves(parts.trainable):
        raise ArgumentError(
            f"There is nothing to start from: Trainer.fit(init_from=). Got {type(init_from).__name__}, expected Heads, "
            "one model, or the path of a checkpoint. Fix: pass for example result.heads or result.heads[3]."
        )
    one = {name: leaf if is_key(leaf) else np.asarray(leaf)[None] for name, leaf in _by_name(*parts[:2]).items()}
    return _Given(f"given {type(init_from).__name__}", None, one)


def _by_name(trainable: Any, state: Any) -> dict[str, Any]:
    leaves = leaves_by_path(trainable) | leaves_by_path(state)
    return dict(zip(dotted(leaves), leaves.values(), strict=True))


def _places(given: _Given, ids: np.ndarray) -> np.ndarray:
    """For each head of the fit the place of its weights, int[H]."""
    if given.ids is None or len(given.ids) == 1:
        return np.zeros(len(ids), int)
    if len(given.ids) != len(ids):
        raise ArgumentError(
            f"The number of heads does not fit: Trainer.fit(init_from=), {given.source}. Got {len(given.ids)}, "
            f"expected {len(ids)}, one for each slice, or 1 for all. Fix: select them, as in heads[[0, 2]]."
        )
    order = np.argsort(given.ids, kind="stable")
    # By id if they are the same heads, perhaps in another order; the heads of other slices go by place.
    if np.array_equal(given.ids[order], np.sort(ids)):
        found: np.ndarray = order[np.searchsorted(given.ids[order], ids)]
        return found
    return np.arange(len(ids))


def _check_names(given: _Given, expected: Mapping[str, Any]) -> None:
    """Refuses weights that the model lacks, or that it has and that are not given."""
    for name in [*expected, *given.arrays]:
        leaf = expected.get(name, given.arrays.get(name))
        # Counters and keys may differ, as those of a dropout that was added: they are fresh then.
        if (name in expected) != (name in given.arrays) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            there, here = ("an array", "none") if name in given.arrays else ("none", "an array")
            raise _unfit(given, name, there, here)


def _taken(given: _Given, name: str, expected: Any, at: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """The array of a name for each head, `[H, ...]`, in the dtype of the fit; None if it is fresh."""
    if name not in given.arrays:
        return None
    array = np.asarray(given.arrays[name])
    same = array.dtype == expected.dtype
    # A run of another precision has rounded or widened the same numbers.
    fits = same or any(
        jnp.issubdtype(array.dtype, kind) and jnp.issubdtype(expected.dtype, kind)
        for kind in (jnp.floating, jnp.complexfloating)
    )
    if array.shape[1:] != expected.shape or not fits:
        got = f"{array.dtype}{list(array.shape[1:])}"
        raise _unfit(given, name, got, f"{expected.dtype}{list(expected.shape)}")
    picked = np.broadcast_to(array[0], (len(at), *array.shape[1:])) if len(array) == 1 else array[at]
    return picked if same else picked.astype(expected.dtype)


def _unfit(given: _Given, name: str, got: str, expected: str) -> ArgumentError:
    return ArgumentError(
        f"Weights and model do not fit: Trainer.fit(init_from=), {given.source}, array {name}. Got {got} for one head, "
        f"expected {expected}. Fix: start from heads of the same model, or take over what fits in configure_model."
    )
