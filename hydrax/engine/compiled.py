"""A function compiled ahead of its calls, once for each form of its arguments."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax


class Compiled:
    """A pure function that is compiled when it is first asked for, apart from its calls.

    `jax.jit` would do both at once: then its memory could not be known before it runs, and two threads that call it
    would compile it twice.

    Args:
      function: of arrays; Python numbers must come as NumPy scalars.
      donate: positions of the arguments that are given away.
      static: names of keyword arguments that are constants of the program.
    """

    def __init__(
        self, function: Callable[..., Any], donate: tuple[int, ...] = (), static: tuple[str, ...] = ()
    ) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate, static_argnames=static)
        self._programs: dict[Hashable, concurrent.futures.Future[jax.stages.Compiled]] = {}

    @property
    def num_compiled(self) -> int:
        """How many programs there are, for all devices and forms of arguments."""
        return len(self._programs)

    def compiled_for(self, device: jax.Device, *args: Any, **static: Any) -> jax.stages.Compiled:
        """The program for a device and for arguments, or shapes, like these."""
        return self.compile_in_background(device, *args, **static).result()

    def compile_in_background(
        self, device: jax.Device, *args: Any, **static: Any
    ) -> concurrent.futures.Future[jax.stages.Compiled]:
        """The same program, perhaps still being compiled: XLA's part of it runs beside what the caller does next.

        It is traced before this returns, in the caller's thread, since JAX's settings may be those of a thread.
        """
        leaves, tree = jax.tree.flatten(args)
        form = (device, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves), tuple(static.items()))
        if form not in self._programs:
            place = jax.sharding.SingleDeviceSharding(device)
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), args)
            self._programs[form] = _in_thread(self._jitted.lower(*shapes, **static).compile)
        return self._programs[form]

    def shapes(self, *args: Any, **static: Any) -> Any:
        """Shapes of what it would give."""
        return jax.eval_shape(self._jitted, *args, **static)


def _in_thread(call: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    """What a call will give, made in a thread that ends with it."""
    found: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="hydrax-compiler").start()
    return found
