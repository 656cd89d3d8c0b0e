"""Compiled: a function that is compiled before it is called, once for each form of its arguments."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax

from hydrax.errors import HydraxError, ModuleError


class Compiled:
    """A pure function whose compilation is separate from its calls.

    `jax.jit` compiles at the first call. Then the memory of a program could not be known before it runs, and two
    threads that call it first would compile it twice.

    Args:
      function: a function of arrays; numbers must be NumPy scalars, which have a dtype.
      donate: positions of the arguments to donate.
      static: names of keyword arguments that are constants of the program.
    """

    def __init__(
        self, function: Callable[..., Any], donate: tuple[int, ...] = (), static: tuple[str, ...] = ()
    ) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate, static_argnames=static)
        self._programs: dict[Hashable, concurrent.futures.Future[jax.stages.Compiled]] = {}

    @property
    def num_compiled(self) -> int:
        """The number of programs compiled so far, over all devices and forms of arguments."""
        return len(self._programs)

    def compiled_for(self, device: jax.Device, *args: Any, **static: Any) -> jax.stages.Compiled:
        """Returns the program for a device and for arguments of these shapes; compiles it if need be."""
        return self.compile_in_background(device, *args, **static).result()

    def compile_in_background(
        self, device: jax.Device, *args: Any, **static: Any
    ) -> concurrent.futures.Future[jax.stages.Compiled]:
        """Returns the program as a future, while XLA compiles it in another thread.

        It is traced before this returns, in the thread of the caller, because some of JAX's settings belong to a
        thread.
        """
        leaves, tree = jax.tree.flatten(args)
        # Found by shapes and not by values: other numbers never compile anew.
        form = (device, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves), tuple(static.items()))
        if form not in self._programs:
            place = jax.sharding.SingleDeviceSharding(device)
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), args)
            with _explained():
                lowered = self._jitted.lower(*shapes, **static)
            self._programs[form] = _in_thread(lowered.compile)
        return self._programs[form]

    def shapes(self, *args: Any, **static: Any) -> Any:
        """Returns the shapes of what the function returns."""
        return jax.eval_shape(self._jitted, *args, **static)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns an error of tracing into a ModuleError: what could be traced for one head failed for many."""
    try:
        yield
    except HydraxError:
        raise
    except Exception as error:
        raise ModuleError(
            "A step of one head cannot run for many heads at once: a method of the module or a callback. Got "
            f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0].rstrip('.'):.300}, expected "
            "operations that jax.vmap can map. Fix: see the line of yours that the cause above names; pass "
            'vmap_method="sequential" to jax.pure_callback, and ordered=False to io_callback.'
        ) from error


def _in_thread(call: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    """Runs a call in a new thread, and returns its result as a future."""
    found: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            found.set_result(call())
        except BaseException as error:  # whatever it is, the thread that waits for the program must see it
            found.set_exception(error)

    threading.Thread(target=run, name="hydrax-compiler").start()
    return found
