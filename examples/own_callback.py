"""Two custom callbacks, one of each tier. `python examples/own_callback.py`, explained in docs/writing-a-callback.md.

`Enough` runs on the host after each validation and stops the heads that are good enough. `PathLength` runs inside the
compiled program at every step and adds up how far the parameters of a head travel. The heads learn a linear function
from 1, 2, 4, ... rows. A stopped head keeps its parameters, so its path grows no further.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]


# 1. First tier: `on_...(event)`, ordinary Python between supersteps. Arrays in an event are NumPy, one entry per head.
class Enough(hx.Callback):
    """Stops a head whose validation loss is below `bound`, and records the step."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.stopped_at: dict[int, int] = {}

    def on_validation_end(self, event: hx.Event) -> hx.Control | None:
        if event.stage != "fit":
            return None
        good = event.live & (event.metrics["val_loss"] < self.bound)
        self.stopped_at |= {int(head): event.step for head in np.flatnonzero(good)}
        return hx.Control(stop=good, reason="good enough")

    # State that a resumed fit needs.
    def state_dict(self) -> dict[str, np.ndarray]:
        return {"heads": np.array(list(self.stopped_at)), "steps": np.array(list(self.stopped_at.values()))}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self.stopped_at = dict(zip(state["heads"].tolist(), state["steps"].tolist(), strict=True))


# 2. Second tier: `init`, `on_step` and `metrics`, pure functions of ONE head, which JAX compiles into the step.
class PathLength(hx.Callback):
    """Adds up the 2-norms of the updates of a head."""

    def init(self, head):
        return {"length": jnp.zeros(())}

    def on_step(self, state, info: hx.StepInfo):
        return {"length": state["length"] + optax.tree.norm(info.updates)}

    def metrics(self, state, info: hx.StepInfo):
        return {"path_length": state["length"]}


class Regression(hx.HydraModule):
    def configure_model(self, key: jax.Array) -> nnx.Linear:
        return nnx.Linear(4, 1, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.sgd(0.1)

    def training_step(self, model: nnx.Linear, batch: Batch, ctx: hx.Context) -> jax.Array:
        return (model(batch["x"])[:, 0] - batch["y"]) ** 2

    validation_step = training_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bound", type=float, default=0.01, help="validation loss that is good enough")
    parser.add_argument("--epochs", type=int, default=40, help="passes of the head with the most rows")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    x = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
    rows = {"x": x, "y": x @ np.array([1, -2, 3, 0.5], np.float32)}
    train, val = ({name: column[part] for name, column in rows.items()} for part in (slice(64), slice(64, 96)))
    slices = hx.Slices.prefix([1, 2, 4, 8, 16, 32, 64], num_rows=64)
    data = ArrayDataModule(train, val=val, slices=slices, batch_size=64)

    # 3. Callbacks are called in the order in which they are listed.
    enough, path = Enough(args.bound), PathLength()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    result = hx.Trainer(max_epochs=args.epochs, callbacks=[enough, path], **quiet).fit(Regression(), data)

    print(f"\n{'rows':<6}{'stopped at step':>17}{'val loss':>12}{'path length':>14}  status")
    metrics = (result.metrics["val_loss"], result.metrics["path_length"])
    for head, (line, loss, length) in enumerate(zip(result.ledger, *metrics, strict=True)):
        step = enough.stopped_at.get(head, "-")
        print(f"{line['length']:<6}{step:>17}{loss:>12.4f}{length:>14.3f}  {line['reason'] or line['status']}")
    print(f"Written: {result.save_ledger(args.out / 'own_callback.csv', scores=metrics[1])}, path lengths as score")


if __name__ == "__main__":
    main()
