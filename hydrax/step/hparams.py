"""Hyper-parameters: one value for all heads, or one value per head (`PerHead`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hydrax.errors import ArgumentError

_INT32 = np.iinfo(np.int32)
_PLAIN = (bool, int, float, str, type(None))
_MAX_LISTED = 1_000  # numbers that a person may want to see in a file; they take 10 ms and 20 kB


class PerHead:
    """One value of a hyper-parameter for each head.

    Inside a step, `self.hparams.<name>` is then this head's own value: a traced scalar, so one program
    serves all heads.

    Args:
      values: numbers or bools, `[H]`, or arrays `[H, ...]`; value k belongs to the k-th head of the run.

    Raises:
      ArgumentError: no values, values that are not numbers, or one that is not finite.
    """

    def __init__(self, values: ArrayLike | Sequence[Any]) -> None:
        try:
            array = np.array(values)
        except ValueError as error:
            raise ArgumentError(
                "PerHead holds arrays of unequal shapes: argument `values`. Got no common shape, expected [H, ...]. "
                "Fix: pad them to one shape."
            ) from error
        if array.ndim == 0 or array.size == 0:
            raise ArgumentError(
                f"PerHead got no sequence of values: argument `values`. Got {values!r}, expected one value for each "
                "head. Fix: pass a list with as many values as there are heads."
            )
        if array.dtype.kind not in "fiub":
            raise ArgumentError(
                f"PerHead holds values that are not numbers: argument `values`. Got dtype {array.dtype}, expected "
                "floats, ints or bools. Fix: only numbers can differ between heads of one compiled program; fit other "
                "settings apart."
            )
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            head = int(np.argmin(finite))
            raise ArgumentError(
                f"PerHead holds a value that is not finite: head {head}. Got {array[head]}, expected a finite number. "
                f"Fix: replace values[{head}]."
            )
        if array.dtype.kind in "iu" and (array.min() < _INT32.min or array.max() > _INT32.max):
            raise ArgumentError(
                f"PerHead holds an integer beyond 32 bits: argument `values`. Got {array.min()} to {array.max()}, "
                f"expected {_INT32.min} to {_INT32.max}. Fix: pass floats, or scale the values."
            )
        self.values = array.astype(np.int32) if array.dtype.kind in "iu" else array
        self.values.setflags(write=False)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, heads: Any) -> Any:
        """The value of one head (int), or a PerHead of some heads (list, slice, mask)."""
        picked = self.values[heads]
        return picked.item() if picked.ndim == 0 else (picked if isinstance(heads, int) else PerHead(picked))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PerHead) and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{v:g}" for v in self.values.reshape(len(self), -1)[:3, 0])
        return f"PerHead([{shown}{', ...' if len(self) > 3 else ''}], heads={len(self)})"


class Hyperparameters(Mapping[str, Any]):
    """The hyper-parameters of a module, read as attributes or as a mapping. Read-only.

    Args:
      values: name to value; a value may be a `PerHead`.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        values = object.__getattribute__(self, "__dict__").get("_values", {})
        if name not in values:
            raise AttributeError(f"no hyper-parameter named {name!r}; there are: {', '.join(values) or 'none'}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"hyper-parameters are read-only: {name!r}. Fix: build the module again with the new value."
        )

    def of_heads(self, heads: Any) -> Hyperparameters:
        """The same for some heads (list, slice, mask): each `PerHead` holds their values only."""
        return Hyperparameters({n: v[heads] if isinstance(v, PerHead) else v for n, v in self.items()})

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold of them; others, such as functions and arrays, are left out."""
        return {name: form for name, value in self.items() if (form := _to_json(value)) is not None}

    def to_yaml(self) -> str:
        """All of them as YAML of plain kinds, which `yaml.safe_load` reads.

        A `PerHead` and an array are lists; of more than 1,000 numbers their short form, such as
        `PerHead([0.1, 0.2, 0.3, ...], heads=100000)`, as `heads.csv` has the values. Tuples are lists too; of a
        function or class there is its qualified name, of all else its repr.
        """
        import yaml  # late, as only a run's folder needs it

        plain = _to_plain(dict(self))
        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=2**31)
        return text

    @classmethod
    def from_json(cls, forms: Mapping[str, Any]) -> Hyperparameters:
        """What `to_json` gave, back."""
        return cls({name: _from_json(form) for name, form in forms.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "Hyperparameters(" + ", ".join(f"{k}={v!r}" for k, v in self.items()) + ")"


def _to_plain(value: Any) -> Any:
    """A value in YAML's own kinds: one of another kind would be a `python/object`, which `safe_load` refuses."""
    if type(value) in _PLAIN:  # not of a kind derived from these: YAML would not know it
        return value
    if isinstance(value, Mapping):
        return {key if type(key) in _PLAIN else str(key): _to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(part) for part in value]
    array = value.values if isinstance(value, PerHead) else value
    if hasattr(array, "dtype") and _is_real(array.dtype) and array.size <= _MAX_LISTED:
        return np.asarray(array).tolist()
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _to_json(value: Any) -> dict[str, Any] | None:
    """A value with the name of its kind, which JSON alone would not keep; None for what it cannot hold."""
    if isinstance(value, PerHead):
        return {"PerHead": value.values.tolist(), "dtype": str(value.values.dtype)}
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, tuple | list):
        parts = [_to_json(part) for part in value]
        return None if None in parts else {type(value).__name__: parts} if type(value) in (tuple, list) else None
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        parts_by_name = {key: _to_json(part) for key, part in value.items()}
        return None if None in parts_by_name.values() else {"dict": parts_by_name}
    return None


def _from_json(form: Mapping[str, Any]) -> Any:
    if "PerHead" in form:
        return PerHead(np.array(form["PerHead"], form["dtype"]))
    if "dict" in form:
        return {key: _from_json(part) for key, part in form["dict"].items()}
    for kind in (tuple, list):
        if kind.__name__ in form:
            return kind(_from_json(part) for part in form[kind.__name__])
    return form["value"]
