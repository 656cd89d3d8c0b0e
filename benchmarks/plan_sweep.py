"""Compares the plan that Hydrax chooses with the best of a sweep: chunk widths 1 to 512, own and XLA's operations.

Ten models on two kinds of rows: random subsets, which the program has to draw, and prefixes kept as uint8. All plans of
a case take turns in one process with `Trainer(barebones=True)`, and the fastest turn counts, since other work only adds
to it. "Rules" is the plan of a short fit, "chosen" that of a fit long enough for timing; both are given as ratios to
the best of the sweep. Results: benchmarks/README.md.

    python benchmarks/plan_sweep.py
    python benchmarks/plan_sweep.py --models 'linear 10-1' CNN
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chunk_width import Clock, Perceptron, machine
from flax import nnx

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NUM_ROWS, LENGTH = 1000, 200
SLOW = 2.0  # Widths beyond one that takes this many times the best are left out.


class Cnn(nnx.Module):
    """Two convolutions with pooling, for images of 28 x 28."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.out = nnx.Linear(16 * 7 * 7, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), (2, 2))
        return self.out(x.reshape(len(x), -1))


class Transformer(nnx.Module):
    """One block of width 32 over 16 tokens."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed, self.out = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 32, decode=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        x = x + self.attention(self.norm(x))
        return self.out((x + self.narrow(nnx.gelu(self.wide(x)))).mean(axis=1))


class Case(NamedTuple):
    """A model, the shape of its rows, slots B and heads H."""

    make: Callable[[nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    outputs: int
    batch_size: int
    num_heads: int


def perceptron(*sizes: int, batch_size: int = 32, num_heads: int = 1024) -> Case:
    return Case(lambda rngs: Perceptron(sizes, rngs), sizes[:1], sizes[-1], batch_size, num_heads)


MODELS = {
    "linear 10-1": perceptron(10, 1, batch_size=16, num_heads=4096),
    "MLP 8-16-1": perceptron(8, 16, 1, batch_size=16, num_heads=4096),
    "logistic 30-2": perceptron(30, 2, num_heads=4096),
    "linear 64-10": perceptron(64, 10),
    "linear 784-2": perceptron(784, 2),
    "MLP 64-32-10": perceptron(64, 32, 10),
    "MLP 20-64-64-1": perceptron(20, 64, 64, 1, batch_size=64),
    "MLP 784-128-10": perceptron(784, 128, 10, num_heads=64),
    "CNN": Case(Cnn, (28, 28, 1), 10, 16, 32),
    "transformer": Case(Transformer, (16, 16), 10, 8, 64),
}


class Model(hx.HydraModule):
    def __init__(self, case: Case) -> None:
        self.case = case

    def configure_model(self, key: jax.Array) -> nnx.Module:
        return self.case.make(nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adam(1e-3)

    def training_step(self, model: Any, batch: dict[str, jax.Array], ctx: hx.Context) -> jax.Array:
        outputs = model(batch["x"].astype(jnp.float32) / 64)
        if self.case.outputs == 1:
            return (outputs[:, 0] - batch["y"]) ** 2
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"])


def data_of(case: Case, kind: str) -> hx.DataModule:
    rng, heads = np.random.default_rng(0), case.num_heads
    x = rng.integers(0, 256, (NUM_ROWS, *case.shape)).astype(np.uint8 if kind == "prefixes" else np.float32)
    train = {"x": x, "y": rng.integers(0, case.outputs + (case.outputs == 1), NUM_ROWS).astype(np.int32)}
    lengths = np.linspace(LENGTH // 2, LENGTH, heads).astype(int)
    if kind == "prefixes":
        slices = hx.Slices.prefix(lengths, NUM_ROWS)
    else:
        slices = hx.Slices.random_subset(lengths, NUM_ROWS, seed=range(heads))
    return ArrayDataModule(train, slices=slices, batch_size=case.batch_size)


def measure(case: Case, kind: str, steps: int, **plan: Any) -> float:
    """Returns the seconds of one step of all heads."""
    clock = Clock()
    trainer = hx.Trainer(max_steps=3 * steps, steps_per_call=steps, callbacks=clock, barebones=True, **plan)
    trainer.fit(Model(case), data_of(case, kind))
    return clock.step_secs()


def sweep(case: Case, kind: str, steps: int, turns: int, chunks: tuple[int, ...]) -> dict[tuple[int, str], float]:
    """Returns the seconds of a step by chunk and lowering."""
    secs: dict[tuple[int, str], float] = {}
    for lowering in ("fast", "plain"):
        best = float("inf")
        for chunk in (one for one in chunks if one <= case.num_heads):
            found = measure(case, kind, steps, chunk=chunk, lowering=lowering)
            secs[chunk, lowering], best = found, min(best, found)
            if chunk >= 16 and found > SLOW * best:
                break
    close = [plan for plan, found in secs.items() if found < 1.3 * min(secs.values())]
    for chunk, lowering in close * (turns - 1):
        found = measure(case, kind, steps, chunk=chunk, lowering=lowering)
        secs[chunk, lowering] = min(secs[chunk, lowering], found)
    return secs


def chosen(case: Case, kind: str, steps: int) -> tuple[tuple[int, str], float]:
    """Returns chunk and lowering of the plan that a fit of so many steps takes, and the seconds that choosing took."""
    started = time.perf_counter()
    plan = hx.Trainer(max_steps=steps, barebones=True).plan(Model(case), data_of(case, kind)).plan
    secs = time.perf_counter() - started
    return (plan.chunk, "plain" if str(plan.lowering) == "plain" else "fast"), secs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="models to sweep")
    parser.add_argument("--kinds", nargs="+", default=["subsets", "prefixes"], help="kinds of rows")
    parser.add_argument("--steps", type=int, default=20, help="steps of a superstep; two are timed in a turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of the plans that are close to the best")
    parser.add_argument("--quick", action="store_true", help="two widths, one turn, few heads, for CI")
    args = parser.parse_args()
    chunks = CHUNKS[:2] if args.quick else CHUNKS

    print(machine())
    print(
        "\n| model | rows | heads | best | ms a step | rules | rules to best | chosen | chosen to best | s to choose |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in args.models:
        case = MODELS[model]._replace(num_heads=4) if args.quick else MODELS[model]
        for kind in args.kinds:
            secs = sweep(case, kind, args.steps, 1 if args.quick else args.turns, chunks)
            best = min(secs, key=lambda plan: secs[plan])
            (rules, _), (timed, choosing) = chosen(case, kind, 1), chosen(case, kind, 1 if args.quick else 10**6)
            cells = [model, kind, f"{case.num_heads:,}", f"C = {best[0]}, {best[1]}", f"{1e3 * secs[best]:.2f}"]
            for plan in (rules, timed):
                if plan not in secs:
                    secs[plan] = measure(case, kind, args.steps, chunk=plan[0], lowering=plan[1])
                cells += [f"C = {plan[0]}, {plan[1]}", f"{secs[plan] / secs[best]:.2f}"]
            print(f"| {' | '.join(cells)} | {choosing:.1f} |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
