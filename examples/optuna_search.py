"""Hyper-parameter search with Optuna: each round asks for a batch of trials and trains them as the heads of one fit.

A trial is a learning rate, a momentum and a weight decay of a small network on scikit-learn's digits; its score is the
validation loss. A trial that diverges is quarantined, which harms no other head, and is reported to Optuna as failed.
`python examples/optuna_search.py`.
"""

import argparse
import csv
from pathlib import Path

import jax
import numpy as np
import optax
import optuna
from flax import nnx
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

Batch = dict[str, jax.Array]
SPACE = {
    "lr": FloatDistribution(1e-3, 100, log=True),
    "momentum": FloatDistribution(0, 0.95),
    "weight_decay": FloatDistribution(1e-6, 1, log=True),
}


# 1. One head. Inside it, each hyper-parameter is a single number, the value of this head.
class Classifier(hx.HydraModule):
    def __init__(self, lr: hx.PerHead, momentum: hx.PerHead, weight_decay: hx.PerHead) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Sequential:
        rngs = nnx.Rngs(key)
        return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))

    def configure_optimizers(self) -> optax.GradientTransformation:
        p = self.hparams
        return optax.chain(optax.add_decayed_weights(p.weight_decay), optax.sgd(p.lr, momentum=p.momentum))

    def training_step(self, model: nnx.Sequential, batch: Batch, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["digit"])

    validation_step = training_step


def make_trainer(steps: int) -> hx.Trainer:
    """Makes a Trainer that validates once, after the last step, and prints nothing."""
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return hx.Trainer(max_steps=steps, check_val_every_n_epoch=None, val_check_interval=steps, **quiet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="number of batches of trials, one fit each")
    parser.add_argument("--trials", type=int, default=16, help="number of trials per round, and so of heads per fit")
    parser.add_argument("--steps", type=int, default=200, help="optimiser updates per head")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output folder")
    args = parser.parse_args()
    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), test_size=500, stratify=digits, random_state=0)
    train, val = ({"image": images[rows] / 16, "digit": digits[rows]} for rows in parts)
    slices = hx.Slices.full(args.trials, num_rows=len(train["digit"]))
    data = ArrayDataModule(train, val=val, slices=slices, batch_size=32, eval_batch_size=500)

    # 2. Ask, fit, tell. Rounds differ only in the values of their `PerHead`s, which are inputs of the programs. So the
    # first round compiles, and later rounds read its programs from the cache: on two cores the first round took 14 s,
    # and each later one 2 to 3 s.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=args.trials))
    for number in range(args.rounds):
        trials = [study.ask(SPACE) for _ in range(args.trials)]
        module = Classifier(**{name: hx.PerHead([trial.params[name] for trial in trials]) for name in SPACE})
        result = make_trainer(args.steps).fit(module, data)
        for trial, line, loss in zip(trials, result.ledger, result.metrics["val_loss"], strict=True):
            if line["status"] == "ok":
                study.tell(trial, float(loss))
            else:
                study.tell(trial, state=TrialState.FAIL)
        failed = sum(trial.state == TrialState.FAIL for trial in study.trials[-args.trials :])
        print(f"round {number}: best loss so far {study.best_value:.4f}, {failed} of {args.trials} trials failed")

    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "optuna_search.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["trial", "state", *SPACE, "loss"])
        lines.writerows([t.number, t.state.name, *(t.params[name] for name in SPACE), t.value] for t in study.trials)
    best = study.best_trial
    print(f"best:  trial {best.number}  " + "  ".join(f"{name}={value:.3g}" for name, value in best.params.items()))
    print(f"Written: {args.out}/optuna_search.csv, one line per trial")


if __name__ == "__main__":
    main()
