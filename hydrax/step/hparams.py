"""Hyper-parameters: one value for all heads, or one value per head (`PerHead`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hydrax.arguments import checked_calls
from hydrax.errors import ArgumentError, MissingAttributeError

_INT32 = np.iinfo(np.int32)
_PLAIN = (bool, int, float, str, type(None))
_MAX_LISTED = 1_000  # Numbers that a person may still want to read in a YAML file: 20 kB, written in 10 ms.


@checked_calls
class PerHead:
    """A hyper-parameter with one value for each head.

    Inside a step, `self.hparams.<name>` is the value of the present head, a traced scalar or array. One compiled
    program serves all heads, and new values compile nothing.

    >>> rates = PerHead([0.1, 0.01, 0.001])
    >>> rates[1]
    0.01
    >>> rates[[2, 0]]
    PerHead([0.001, 0.1], heads=2)

    Args:
      values: numbers or bools, `[H]`, or arrays, `[H, ...]`; value k belongs to the k-th head of the run.

    Raises:
      ArgumentError: there are no values, they are not numbers, or one is not finite.
    """

    def __init__(self, values: ArrayLike | Sequence[Any]) -> None:
        try:
            array = np.array(values)
        except TypeError as error:  # such as JAX's typed keys, which NumPy cannot hold
            raise ArgumentError(
                f"PerHead holds values that are not numbers: argument `values`. Got {values!r:.60}, expected floats, "
                "ints or bools. Fix: pass a list of numbers."
            ) from error
        except ValueError as error:
            raise ArgumentError(
                "PerHead holds arrays of different shapes: argument `values`. Got no common shape, expected [H, ...]. "
                "Fix: pad them to one shape."
            ) from error
        if array.ndim == 0 or array.size == 0:
            raise ArgumentError(
                f"PerHead needs a sequence of values: argument `values`. Got {values!r}, expected one value for each "
                "head. Fix: pass a list with one value for each head."
            )
        if array.dtype.kind not in "fiub":
            raise ArgumentError(
                f"PerHead holds values that are not numbers: argument `values`. Got dtype {array.dtype}, expected "
                "floats, ints or bools. Fix: run a fit for each setting; in one compiled program only numbers can "
                "differ between heads."
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
        """Picks the value of one head by an int, or a PerHead of several by a list, slice or mask.

        Raises:
          ArgumentError: there is no such head, or none is picked.
        """
        try:
            picked = self.values[heads]
        except (IndexError, OverflowError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"No such head: PerHead[...]. Got {heads!r:.60} ({error}), expected ints below {len(self)}, a slice or "
                f"a mask of {len(self)} bools. Fix: heads count from 0."
            ) from error
        return picked.item() if picked.ndim == 0 else (picked if isinstance(heads, int) else PerHead(picked))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PerHead) and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{v:g}" for v in self.values.reshape(len(self), -1)[:3, 0])
        return f"PerHead([{shown}{', ...' if len(self) > 3 else ''}], heads={len(self)})"


class Hyperparameters(Mapping[str, Any]):
    """The hyper-parameters of a module: a read-only mapping whose values are also attributes.

    >>> hparams = Hyperparameters({"width": 64, "lr": PerHead([0.1, 0.01])})
    >>> hparams.width == hparams["width"]
    True
    >>> hparams.of_heads([1])
    Hyperparameters(width=64, lr=PerHead([0.01], heads=1))

    Args:
      values: the values by name; a value may be a `PerHead`.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        values = object.__getattribute__(self, "__dict__").get("_values", {})
        if name not in values:
            # Not an error of Hydrax: hasattr, copy and pickle rely on AttributeError.
            raise AttributeError(f"no hyper-parameter named {name!r}; there are: {', '.join(values) or 'none'}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise MissingAttributeError(
            f"Hyper-parameters are read-only: {name!r}. Got {value!r:.100}, expected no assignment. Fix: create the "
            "module again with the new value."
        )

    def of_heads(self, heads: Any) -> Hyperparameters:
        """Restricts each `PerHead` to some heads, given by a list, slice or mask."""
        return Hyperparameters({n: v[heads] if isinstance(v, PerHead) else v for n, v in self.items()})

    def to_json(self) -> dict[str, Any]:
        """Converts to a form that JSON holds and `from_json` reads; functions, arrays and the like are left out."""
        return {name: form for name, value in self.items() if (form := _to_json(value)) is not None}

    def to_yaml(self) -> str:
        """Writes all of them as YAML that `yaml.safe_load` reads, for a person to look at.

        Tuples, arrays and `PerHead` become lists. With more than 1,000 numbers they become their short form, such as
        `PerHead([0.1, 0.2, 0.3, ...], heads=100000)`; `heads.csv` has the values. A function or class becomes its
        qualified name, anything else its repr.

        >>> print(Hyperparameters({"lr": PerHead([0.1, 0.01]), "sizes": (64, 10), "act": len}).to_yaml(), end="")
        lr: [0.1, 0.01]
        sizes: [64, 10]
        act: builtins.len
        """
        import yaml  # late: only writing a run's folder needs it

        plain = _to_plain(dict(self))
        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=2**31)
        return text

    @classmethod
    def from_json(cls, forms: Mapping[str, Any]) -> Hyperparameters:
        """Restores what `to_json` returned."""
        return cls({name: _from_json(form) for name, form in forms.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "Hyperparameters(" + ", ".join(f"{k}={v!r}" for k, v in self.items()) + ")"


def _to_plain(value: Any) -> Any:
    """Converts a value to YAML's own types: any other would be a `python/object`, which `safe_load` refuses."""
    if type(value) in _PLAIN:  # the exact type: YAML does not know a subclass
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
    """Pairs a value with the name of its type, which JSON alone would lose; None if JSON cannot hold it."""
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
