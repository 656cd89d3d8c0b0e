"""The same training written by hand in JAX, as a user without a library would write it.

All forms share the step of one head: the program gathers the batch from the one dataset, the loss is the mean over its
rows, Optax updates, and whole states are donated. A head goes through its rows in base order, over and over, which
costs next to nothing (Hydrax shuffles them in each pass, and pays for that). Forms:

- vmap: a scan over K steps of the vmapped step, one program on one device;
- chunks: heads in blocks of C; a map over blocks outside a scan over K steps, so that the parameters of a block stay in
  the cache; one such program for each device, with its own blocks, dispatched without waiting;
- one by one: the jitted step of one head, called in a Python loop over heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from peers.cases import Case

Loss = Callable[[Any, Mapping[str, jax.Array]], jax.Array]


def make_loss(case: Case) -> Loss:
    """Returns the function from parameters and a batch to the loss of each row."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: case.make_model(nnx.Rngs(0))))
    return lambda params, batch: case.row_loss(nnx.merge(graphdef, params), batch)


def gather(data: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda column: column.at[rows].get(mode="promise_in_bounds"), data)


def make_own_step(case: Case, row_loss: Loss) -> Callable[..., Any]:
    """Makes one update of one head on its own rows."""
    optimizer, size = case.make_optimizer(), case.batch_size

    def step(params: Any, opt_state: Any, head: Any, t: Any, data: Any) -> Any:
        places = (t * size + jnp.arange(size)) % head["length"]
        batch = gather(data, places + jnp.where(places >= head["gap_at"], head["gap"], 0))
        loss, gradient = jax.value_and_grad(lambda p: row_loss(p, batch).mean())(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state, loss

    return step


def make_shared_step(case: Case, row_loss: Loss) -> Callable[..., Any]:
    """Makes one update of one head on rows that all heads get; the head learns from those outside its gap."""
    optimizer, size = case.make_optimizer(), case.batch_size
    order = jnp.asarray(np.random.default_rng(1).permutation(case.num_rows), jnp.int32)

    def step(params: Any, opt_state: Any, head: Any, t: Any, data: Any) -> Any:
        rows = order[(t * size + jnp.arange(size)) % case.num_rows]
        batch = gather(data, rows)
        live = (rows < head["gap_at"]) | (rows >= head["gap_at"] + head["gap"])

        def loss_of(params: Any) -> jax.Array:
            return jnp.where(live, row_loss(params, batch), 0).sum() / jnp.maximum(live.sum(), 1)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state, loss

    return step


class ByHand:
    """The common part of all forms: the arrays of the heads, and counting steps."""

    steps_per_unit = 1

    def __init__(self, case: Case, start: Any, call_steps: int) -> None:
        self.case, self.call_steps, self.note, self.step = case, call_steps, "", 0
        rows = case.rows()
        self.heads = {name: getattr(rows, name).astype(np.int32) for name in ("length", "gap_at", "gap")}
        self.data, self.start = case.make_data(case.num_rows), start
        self._first = self._last = None

    def advance(self, num_steps: int) -> None:
        for _ in range(num_steps // self.call_steps):
            self._last = self._call(self.step)
            self._first = self._last if self._first is None else self._first
            self.step += self.call_steps
        jax.block_until_ready(self._last)

    def losses(self) -> tuple[float, float]:
        first, last = (
            np.concatenate([np.asarray(part).reshape(self.call_steps, -1) for part in parts], axis=1)
            for parts in (self._first, self._last)
        )
        return float(first[0, : self.case.num_heads].mean()), float(last[-1, : self.case.num_heads].mean())

    def close(self) -> None:
        vars(self).clear()

    def _call(self, step: int) -> list[jax.Array]:
        """Makes K steps of all heads, starting at `step`. Returns their losses in parts, each [K, ...heads]."""
        raise NotImplementedError


class Vmap(ByHand):
    """One program: scan over steps, vmap over heads."""

    def __init__(self, case: Case, start: Any, make_step: Callable[..., Any] = make_own_step) -> None:
        super().__init__(case, start, case.steps_per_call)
        one = make_step(case, make_loss(case))
        step = jax.vmap(one, in_axes=(0, 0, 0, None, None))

        def run(state: Any, heads: Any, data: Any, first: Any) -> Any:
            def body(state: Any, t: Any) -> Any:
                params, opt_state, loss = step(*state, heads, t, data)
                return (params, opt_state), loss

            return lax.scan(body, state, first + jnp.arange(case.steps_per_call))

        self._run = jax.jit(run, donate_argnums=0)
        params = jax.tree.map(jnp.array, start)
        self._state = (params, jax.jit(jax.vmap(case.make_optimizer().init))(params))
        self.heads, self.data = jax.device_put((self.heads, self.data))

    def _call(self, step: int) -> list[jax.Array]:
        self._state, losses = self._run(self._state, self.heads, self.data, np.int32(step))
        return [losses]


class Chunks(ByHand):
    """One program per device: a map over its chunks of C heads, each a scan over steps of the vmapped step."""

    def __init__(
        self,
        case: Case,
        start: Any,
        chunk: int,
        make_step: Callable[..., Any] = make_own_step,
        row_loss: Loss | None = None,
    ) -> None:
        super().__init__(case, start, case.steps_per_call)
        step = jax.vmap(make_step(case, row_loss or make_loss(case)), in_axes=(0, 0, 0, None, None))

        def run(state: Any, heads: Any, data: Any, first: Any) -> Any:
            def run_chunk(chunk: Any) -> Any:
                state, heads = chunk

                def body(state: Any, t: Any) -> Any:
                    params, opt_state, loss = step(*state, heads, t, data)
                    return (params, opt_state), loss

                return lax.scan(body, state, first + jnp.arange(case.steps_per_call))

            state, losses = lax.map(run_chunk, (state, heads))
            return state, jnp.moveaxis(losses, 0, 1)

        self._run = jax.jit(run, donate_argnums=0)
        self._parts = [self._put(part, chunk, device) for part, device in _deal(case.num_heads, chunk)]
        # A CPU device runs its program in the dispatching thread, so each device needs its own thread.
        self._lanes = [ThreadPoolExecutor(1) for _ in self._parts]

    def _put(self, places: np.ndarray, chunk: int, device: Any) -> list[Any]:
        """Returns the heads of a device, `[chunks, C, ...]`, and the dataset."""
        cut = lambda a: np.asarray(a)[places].reshape(-1, chunk, *np.shape(a)[1:])  # noqa: E731
        params, heads = jax.tree.map(cut, (self.start, self.heads))
        with jax.default_device(device):
            params = jax.device_put(params, device)
            opt_state = jax.jit(jax.vmap(jax.vmap(self.case.make_optimizer().init)))(params)
        return [(params, jax.device_put(opt_state, device)), *jax.device_put((heads, self.data), device)]

    def _call(self, step: int) -> list[jax.Array]:
        def run(part: list[Any]) -> jax.Array:
            part[0], losses = self._run(*part, np.int32(step))
            return losses

        waiting = [lane.submit(run, part) for lane, part in zip(self._lanes, self._parts, strict=True)]
        return [one.result() for one in waiting]


def _deal(num_heads: int, chunk: int) -> list[tuple[np.ndarray, Any]]:
    """Deals the heads to devices evenly, in whole chunks; fills the last chunk with copies."""
    chunks = np.minimum(np.arange(-(-num_heads // chunk) * chunk), num_heads - 1).reshape(-1, chunk)
    parts = np.array_split(chunks, len(jax.devices()))
    return [(part.ravel(), device) for part, device in zip(parts, jax.devices(), strict=True) if len(part)]


class OneByOne(ByHand):
    """The jitted step of one head, in a Python loop over heads."""

    def __init__(self, case: Case, start: Any) -> None:
        super().__init__(case, start, 1)
        self._step = jax.jit(make_own_step(case, make_loss(case)), donate_argnums=(0, 1))
        init = jax.jit(case.make_optimizer().init)
        self.data = jax.device_put(self.data)
        self._heads = []
        for head in range(case.num_heads):
            params, of_head = jax.device_put(jax.tree.map(lambda a: np.asarray(a)[head], (start, self.heads)))  # noqa: B023
            self._heads.append([params, init(params), of_head])

    def _call(self, step: int) -> list[jax.Array]:
        losses, t = [], jax.device_put(np.int32(step))
        for head in self._heads:
            head[0], head[1], loss = self._step(*head, t, self.data)
            losses.append(loss)
        return losses
