"""examples/: they run as a user starts them, and their output is correct."""

import ast
import contextlib
import csv
import io
import re
import runpy
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import islice
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, r2_score
from sklearn.model_selection import (
    KFold,
    LeaveOneOut,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def scikit_learn_has_one_thread() -> Iterator[None]:
    """On shared cores its threads wait for each other and take ten times as long."""
    with threadpool_limits(1):
        yield


def run(script: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")


def printed(script: str, *arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(ROOT / "examples" / script, *arguments)
    return out.getvalue()


def shown(script: str, *arguments: str) -> dict[str, list[str]]:
    """Returns the lines of printed tables by their first cell. At least two spaces separate the cells."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in printed(script, *arguments).splitlines()]
    return {name: values for name, *values in cells if values}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def distributions() -> dict[str, list[str]]:
    """Returns the distribution of each importable name, which takes a second."""
    return dict(packages_distributions())


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_every_import_of_an_example_is_what_make_demo_installs(script, distributions):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = {
        re.split(r"[<>=\[]", name)[0] for name in project["dependencies"] + extras["plots"] + extras["examples"]
    }
    nodes = list(ast.walk(ast.parse(script.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hydrax"}
    assert {distributions[root][0] for root in roots} <= installed


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_an_example_has_less_than_a_hundred_lines(script):
    assert len(script.read_text().splitlines()) < 100


# ---- examples/first_fit.py --------------------------------------------------------------------------------------


def test_the_first_fit_s_heads_get_better_with_rows_and_the_last_is_as_good_as_scikit_learn():
    lines = printed("first_fit.py").splitlines()
    accuracy = {rows: float(score) for rows, score in re.findall(r"(\d+) rows  ([\d.]+)", "\n".join(lines))}
    x, y = load_digits(return_X_y=True)
    reference = LogisticRegression().fit(x[:400] / 16, y[:400]).score(x[400:] / 16, y[400:])
    np.testing.assert_allclose(accuracy["400"], reference, atol=0.03)
    assert accuracy["10"] + 0.2 < accuracy["400"]
    assert lines[-1] == f"image 400 is a {y[400]}, and the last model says {y[400]}"


# ---- examples/learning_curve.py ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> tuple[Path, str]:
    """Lengths 1, 35 and 1257 with two seeds each, 40 steps: the output folder and the printed text."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return out, printed("learning_curve.py", "--lengths=3", "--seeds=2", "--steps=40", f"--out={out}")


@pytest.fixture(scope="module")
def small(small_run) -> Path:
    return small_run[0]


def test_the_learning_curve_has_a_line_for_each_length(small):
    assert [(line["length"], line["heads"]) for line in table(small / "learning_curve.csv")] == [
        ("1", "2"),
        ("35", "2"),
        ("1257", "2"),
    ]


def test_the_learning_curve_is_the_mean_and_spread_of_the_heads_scores(small):
    scores = np.array([float(head["score"]) for head in table(small / "heads.csv")]).reshape(3, 2)
    curve = table(small / "learning_curve.csv")
    np.testing.assert_allclose([float(line["accuracy_mean"]) for line in curve], scores.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        [float(line["accuracy_std"]) for line in curve], abs(scores[:, 0] - scores[:, 1]) / 2, rtol=1e-3, atol=1e-7
    )


def test_the_heads_of_the_learning_curve_are_listed_with_recipe_seed_and_length(small):
    heads = table(small / "heads.csv")
    assert list(heads[0]) == ["head", "recipe", "seed", "length", "score", "status", "reason"]
    assert [(head["recipe"], head["seed"], head["length"], head["status"]) for head in heads[2:4]] == [
        ("prefix(35)", "0", "35", "ok"),
        ("prefix(35)", "1", "35", "ok"),
    ]


def test_the_learning_curve_is_drawn(small):
    assert (small / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_learning_curve_s_run_can_be_read_by_tensorboard(small):
    events = EventAccumulator(str(small / "hydrax_logs" / "version_0"))
    events.Reload()
    # An epoch is 40 steps: 1257 rows in batches of 32.
    assert [event.step for event in events.Scalars("spread/val_accuracy/median")] == [40]
    assert {"metrics/train_loss", "metrics/val_loss", "run/live_heads"} <= set(events.Tags()["scalars"])


def test_the_learning_curve_says_where_things_are_and_how_to_look_at_them(small_run):
    out, text = small_run
    for name in ("learning_curve.png", "heads.csv", "tensorboard.main --logdir"):
        assert name in text
    assert str(out / "hydrax_logs" / "version_0") in text


@pytest.mark.slow
def test_the_learning_curve_rises_from_chance_to_over_95_percent_in_under_90_seconds(tmp_path):
    start = time.perf_counter()
    run(ROOT / "examples" / "learning_curve.py", f"--out={tmp_path}")
    secs = time.perf_counter() - start
    accuracy = [float(line["accuracy_mean"]) for line in table(tmp_path / "learning_curve.csv")]
    assert len(table(tmp_path / "heads.csv")) >= 256
    assert 0.05 < accuracy[0] < 0.2
    assert accuracy[-1] > 0.95
    assert np.all(np.diff(accuracy) > -0.01)
    assert secs < 90


# ---- examples/slices.py -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slices_example() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "slices.py"))


def test_the_slices_are_drawn_and_listed_with_heads_and_lengths(tmp_path):
    listed = shown("slices.py", "--steps=2", f"--out={tmp_path}")
    # Wine has 178 rows in classes of 59, 71 and 48.
    assert {name: listed[name] for name in ("random_subset, half", "leave_one_out")} == {
        "random_subset, half": ["10", "89..89"],
        "leave_one_out": ["178", "177..177"],
    }
    assert {name: listed[name] for name in ("partition_by class", "leave_group_out")} == {
        "partition_by class": ["3", "48..71"],
        "leave_group_out": ["3", "107..130"],
    }
    assert (tmp_path / "slices.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "rotation.png").read_bytes().startswith(b"\x89PNG")


# Batches of 8 slots; rows 2 to 21 are the long slice's, rows 8 to 12 the short one's, of 24.
@pytest.mark.parametrize(
    ("small_slices", "sampling", "steps", "long", "short"),
    [("mask", "own", 5, 2, 5), ("wrap", "own", 5, 2, 8), ("mask", "shared", 6, 2, 2)],
)
def test_the_drawn_heads_meet_each_row_of_their_slices_equally_often(
    slices_example, small_slices, sampling, steps, long, short
):
    met = slices_example["meetings"](small_slices, sampling, steps).sum(axis=1)
    row = np.arange(24)
    np.testing.assert_array_equal(met[0], np.where((row >= 2) & (row < 22), long, 0))
    np.testing.assert_array_equal(met[1], np.where((row >= 8) & (row < 13), short, 0))


# ---- examples/k_fold.py -----------------------------------------------------------------------------------------


def test_k_fold_s_out_of_fold_probabilities_are_scikit_learn_s(tmp_path):
    scores = shown("k_fold.py", f"--out={tmp_path}")
    pixels, digits = load_digits(return_X_y=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    expected = cross_val_predict(
        LogisticRegression(C=0.02, tol=1e-7, max_iter=1000),
        StandardScaler().fit_transform(pixels),
        digits,
        cv=folds,
        method="predict_proba",
    )
    found = np.loadtxt(tmp_path / "k_fold.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # measured: 6e-6
    assert float(scores["hydrax"][0]) == round((expected.argmax(axis=1) == digits).mean(), 4)
    assert scores["hydrax"][:2] == scores["scikit-learn"][:2]


# ---- examples/bagging.py ----------------------------------------------------------------------------------------


def test_bagging_s_out_of_bag_score_foretells_the_test_score_and_the_ensemble_beats_a_head(tmp_path):
    run(ROOT / "examples" / "bagging.py", "--heads=16", "--steps=150", f"--out={tmp_path}")
    (single_bag, single_test), (ensemble_bag, ensemble_test) = np.loadtxt(
        tmp_path / "bagging.csv", delimiter=",", skiprows=1
    )
    # One standard error of an accuracy of 0.95 over 719 test rows is 0.008.
    np.testing.assert_allclose([single_bag, ensemble_bag], [single_test, ensemble_test], atol=0.025)
    assert ensemble_bag > single_bag > 0.9
    assert ensemble_test > single_test > 0.9


# ---- examples/leave_one_out.py ----------------------------------------------------------------------------------


def test_leave_one_out_predicts_what_scikit_learn_s_ridge_does_with_either_sampling(tmp_path):
    scores = shown("leave_one_out.py", "--rows=80", f"--out={tmp_path}")
    x, y = load_diabetes(return_X_y=True)
    expected = cross_val_predict(Ridge(alpha=10.0), StandardScaler().fit_transform(x[:80]), y[:80], cv=LeaveOneOut())
    columns = np.loadtxt(tmp_path / "leave_one_out.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(columns[:, 1], expected, atol=1e-3)  # of targets from 42 to 341
    np.testing.assert_allclose(columns[:, 2], expected, atol=1e-5)  # the closed form
    rmse = f"{np.sqrt(((expected - y[:80]) ** 2).mean()):.3f}"
    assert [scores[name][-2] for name in ("own", "shared")] == [rmse, rmse]
    assert max(float(scores[name][-1]) for name in ("own", "shared")) < 1e-3


# ---- examples/federated.py --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federated(tmp_path_factory) -> tuple[dict[str, list[str]], list[dict[str, str]]]:
    """The printed tables and the ledger of the clients: 10 evenly mixed, 10 with one class each, 10 uneven."""
    out = tmp_path_factory.mktemp("federated")
    return shown("federated.py", "--passes=8", f"--out={out}"), table(out / "federated.csv")


@pytest.fixture(scope="module")
def federated_digits() -> list[np.ndarray]:
    """The classes of the rows that are split among clients, and of the 500 test rows."""
    digits = load_digits().target
    return train_test_split(digits, test_size=500, stratify=digits, random_state=0)


def test_every_row_is_dealt_to_one_client_in_each_deal(federated, federated_digits):
    lengths = np.array([int(client["length"]) for client in federated[1]]).reshape(3, 10)
    np.testing.assert_array_equal(lengths.sum(axis=1), [1297, 1297, 1297])
    np.testing.assert_array_equal(lengths[1], np.bincount(federated_digits[0]))


def test_a_client_of_one_class_is_right_on_that_class_only(federated, federated_digits):
    scores = [float(client["score"]) for client in federated[1][10:20]]
    np.testing.assert_allclose(scores, np.bincount(federated_digits[1]) / 500, atol=1e-6)
    assert federated[0]["one class a client"][1:] == ["1.000", "0.100"]


def test_uneven_clients_are_good_at_home_and_bad_elsewhere(federated):
    _, mixed_local, mixed_global = map(float, federated[0]["evenly mixed"])
    _, uneven_local, uneven_global = map(float, federated[0]["uneven, alpha=0.3"])
    assert abs(mixed_local - mixed_global) < 0.02
    assert uneven_local > uneven_global + 0.2


# ---- examples/learning_rate_sweep.py ----------------------------------------------------------------------------


def test_the_sweep_of_learning_rates_averages_over_seeds_and_names_the_best_of_all_heads(tmp_path):
    lines = shown("learning_rate_sweep.py", "--seeds=2", "--epochs=3", f"--out={tmp_path}")
    heads = table(tmp_path / "learning_rate_sweep.csv")
    scores = np.array([float(head["score"]) for head in heads])
    means = [f"{mean:.4f}" for mean in scores.reshape(7, 2).mean(axis=1)]
    assert [lines[f"{float(head['lr']):g}"][0] for head in heads[::2]] == means
    best = int(np.argmax(scores))
    assert lines["best head:"] == [str(best), f"lr={heads[best]['lr']}", f"val accuracy {scores[best]:.4f}"]


def test_a_rate_in_the_middle_of_the_sweep_beats_both_ends(tmp_path):
    lines = shown("learning_rate_sweep.py", "--seeds=1", "--epochs=2", f"--out={tmp_path}")
    low, middle, high = (float(lines[rate][0]) for rate in ("0.0001", "0.1", "3"))
    assert middle > 0.9
    assert max(low, high) < 0.3


# ---- examples/hyperparameter_grid.py ----------------------------------------------------------------------------


@pytest.mark.parametrize(("peak", "warmup"), [(0.3, 1), (0.5, 4)])
def test_the_grid_s_optimiser_follows_optax_s_own_schedule(peak, warmup):
    grid = runpy.run_path(str(ROOT / "examples" / "hyperparameter_grid.py"))
    optimiser = grid["Classifier"](peak, warmup, 10).configure_optimizers()
    schedule = optax.warmup_cosine_decay_schedule(0, peak, warmup, decay_steps=10)
    weight = jnp.zeros(())
    state, moved = optimiser.init(weight), []
    for _ in range(10):
        update, state = optimiser.update(jnp.ones(()), state, weight)
        moved.append(update)
    momentum = (1 - 0.9 ** np.arange(1, 11)) / (1 - 0.9)  # what a gradient of 1 adds up to
    np.testing.assert_allclose(moved, [-schedule(t) * momentum[t] for t in range(10)], rtol=1e-5, atol=1e-7)


def test_the_grid_has_a_line_for_each_schedule_and_names_the_best_head(tmp_path):
    lines = printed("hyperparameter_grid.py", "--seeds=2", "--steps=60", f"--out={tmp_path}").splitlines()
    heads = table(tmp_path / "hyperparameter_grid.csv")
    scores = np.array([float(head["score"]) for head in heads])
    means = [line.split()[:3] for line in lines if re.match(r"[\d.]+ +\d", line)]
    settings = [(peak, warmup) for peak in ("0.03", "0.3", "1") for warmup in ("0", "6", "30")]
    assert means == [[*s, f"{m:.4f}"] for s, m in zip(settings, scores.reshape(9, 2).mean(axis=1), strict=True)]
    assert [(f"{float(head['peak']):g}", head["warmup"]) for head in heads[::2]] == settings
    assert f"best head:  {np.argmax(scores)}  " in "\n".join(lines)
    # In 60 steps a tenth of the rate does not get as far.
    assert scores.reshape(3, 6).mean(axis=1)[0] + 0.05 < scores.reshape(3, 6).mean(axis=1)[1]


# ---- examples/optuna_search.py ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searches(tmp_path_factory) -> list[tuple[dict[str, list[str]], list[dict[str, str]], set[str]]]:
    """For searches of one and of two rounds: the printed lines, the trials, and the programs compiled so far."""
    out, compiled = tmp_path_factory.mktemp("optuna"), []
    listen = lambda name, **_: compiled.append(name) if name.endswith("/cache_misses") else None  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    found = []
    for rounds in (1, 2):
        lines = shown("optuna_search.py", f"--rounds={rounds}", f"--out={out}")
        found.append((lines, table(out / "optuna_search.csv"), len(compiled)))
    jax.monitoring.unregister_event_listener(listen)
    return found


def test_the_second_round_of_the_search_compiles_nothing(searches):
    (_, first, before), (_, both, after) = searches
    assert (len(first), len(both), first) == (16, 32, both[:16])
    assert 0 < after == before


def test_the_trials_that_diverged_failed_and_the_best_of_the_others_is_named(searches):
    lines, trials, _ = searches[1]
    # Gradient descent with momentum diverges where rate times curvature is above 2 * (1 + momentum), and the curvature
    # is at least the weight decay; Goh, "Why Momentum Really Works", Distill 2017.
    sizes = {t["trial"]: float(t["lr"]) * float(t["weight_decay"]) / (1 + float(t["momentum"])) for t in trials}
    diverged = {trial for trial, size in sizes.items() if size > 3}
    assert diverged and diverged <= {trial["trial"] for trial in trials if trial["state"] == "FAIL"}
    best = min((trial for trial in trials if trial["state"] == "COMPLETE"), key=lambda trial: float(trial["loss"]))
    assert lines["best:"][:2] == [f"trial {best['trial']}", f"lr={float(best['lr']):.3g}"]
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(1797), test_size=500, stratify=y, random_state=0)
    x_train, x_val = (x[rows] / 16 for rows in parts)
    linear = LogisticRegression().fit(x_train, y[parts[0]])
    assert float(best["loss"]) < log_loss(y[parts[1]], linear.predict_proba(x_val))


# ---- examples/deep_ensemble.py ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """The printed lines for 8 heads, and the probabilities behind them."""
    out = tmp_path_factory.mktemp("ensemble")
    lines = shown("deep_ensemble.py", "--heads=8", "--steps=150", f"--out={out}")
    with np.load(out / "deep_ensemble.npz") as file:
        return lines, dict(file)


def test_the_ensemble_is_the_mean_of_the_heads_and_its_scores_are_scikit_learn_s(ensemble):
    lines, found = ensemble
    mean = found["single"].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found["ensemble"], mean, atol=1e-6)
    confidence, right = mean.max(axis=1), mean.argmax(axis=1) == found["digit"]
    fraction, predicted = calibration_curve(right, confidence, n_bins=15)
    weights = np.histogram(confidence, bins=15, range=(0, 1))[0]
    error = (weights[weights > 0] * abs(fraction - predicted)).sum() / len(right)
    np.testing.assert_allclose(
        [float(number) for number in lines["mean of 8 heads"]],
        [right.mean(), log_loss(found["digit"], mean / mean.sum(axis=1, keepdims=True)), error],
        atol=1e-4,
    )


def test_the_ensemble_s_log_loss_is_at_most_the_mean_head_s(ensemble):
    lines, _ = ensemble  # Jensen's inequality
    assert float(lines["mean of 8 heads"][1]) < float(lines["heads, on average"][1])


# ---- examples/own_callback.py -----------------------------------------------------------------------------------


def descend(x: np.ndarray, y: np.ndarray, rate: float) -> Iterator[tuple[np.ndarray, float]]:
    """Gradient descent on the mean squared error from zero: weights and path length after each step."""
    x = np.column_stack([x, np.ones(len(x))])
    weights, length = np.zeros(x.shape[1]), 0.0
    while True:
        update = -rate * 2 / len(x) * x.T @ (x @ weights - y)
        weights, length = weights + update, length + float(np.linalg.norm(update))
        yield weights, length


@pytest.mark.parametrize("rows", [16, 64])
def test_the_callback_stops_a_head_when_numpy_s_descent_is_good_enough_and_measures_its_path(tmp_path, rows):
    stopped_at, loss, length, _ = shown("own_callback.py", "--epochs=40", f"--out={tmp_path}")[str(rows)]
    x = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32).astype(float)
    y = x @ np.array([1, -2, 3, 0.5])
    losses, lengths = zip(
        *(
            (((x[64:] @ weights[:4] + weights[4] - y[64:]) ** 2).mean(), length)
            for weights, length in islice(descend(x[:rows], y[:rows], rate=0.1), 40)
        ),
        strict=True,
    )
    step = int(np.argmax(np.array(losses) < 0.01))
    assert int(stopped_at) == step + 1
    np.testing.assert_allclose([float(loss), float(length)], [losses[step], lengths[step]], atol=1e-3)


# ---- examples/resume.py -----------------------------------------------------------------------------------------


def test_the_resumed_fit_of_the_example_ends_with_the_bits_of_the_unbroken_one(tmp_path):
    lines = shown("resume.py", "--steps=40", f"--out={tmp_path}")
    assert [line[0] for line in (lines["unbroken"], lines["cut off"], lines["resumed"])] == ["40", "20", "40"]
    with np.load(tmp_path / "resume.npz") as found:
        assert found["resumed"].tobytes() == found["whole"].tobytes()
        assert not np.array_equal(found["cut"], found["whole"])
    assert lines["resumed"][1] == "100.00%"


# ---- examples/regression.py -------------------------------------------------------------------------------------


def test_the_regression_s_scores_are_scikit_learn_s_of_its_predictions_and_of_ridge(tmp_path):
    lines = shown("regression.py", "--subsets=2", "--steps=100", f"--out={tmp_path}")
    found = np.load(tmp_path / "regression.npy")
    x, y = load_diabetes(return_X_y=True)
    x = x / x.std(axis=0)
    train, test = train_test_split(np.arange(442), test_size=122, random_state=0)
    r2 = r2_score(np.tile(y[test, None], 12), found.T, multioutput="raw_values").reshape(6, 2).mean(axis=1)
    error = abs(found - y[test]).reshape(6, -1).mean(axis=1)
    shorts = [lines[str(length)] for length in (10, 20, 40, 80, 160, 320)]
    np.testing.assert_allclose([float(line[0]) for line in shorts], r2, atol=1e-3)
    np.testing.assert_allclose([float(line[2]) for line in shorts], error, atol=1e-2)
    # The longest subset is all rows, so all of its heads have one ridge regression.
    ridge = Ridge(alpha=10).fit(x[train], y[train]).score(x[test], y[test])
    np.testing.assert_allclose(float(shorts[-1][3]), ridge, atol=1e-3)


# ---- examples/one_call.py ---------------------------------------------------------------------------------------


def test_the_one_call_s_models_are_as_good_as_what_they_learned_from(tmp_path):
    lines = shown("one_call.py", "--models=64", f"--out={tmp_path}")
    x, y = load_digits(return_X_y=True)
    x, y = x[np.isin(y, (3, 8))] / 16, y[np.isin(y, (3, 8))]
    # One row: all others are of its class, too. All rows: about as good as logistic regression of the same.
    assert lines["1"] == [f"{(y[200:] == y[0]).mean():.3f}"]
    reference = LogisticRegression().fit(x[:64], y[:64]).score(x[200:], y[200:])
    np.testing.assert_allclose(float(lines["64"][0]), reference, atol=0.05)
    assert lines["the last, alone"] == lines["64"]
    accuracy = (np.load(tmp_path / "one_call.npy").argmax(axis=-1) == (y[200:] == 8)).mean(axis=1)
    assert lines["32"] == [f"{accuracy[31]:.3f}"]


# ---- examples/linen_model.py ------------------------------------------------------------------------------------


def test_the_linen_heads_batch_norm_knows_the_means_of_their_own_rows_and_they_classify_like_scikit_learn():
    lines = shown("linen_model.py")
    x, classes = load_wine(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(178)[:175]
    x, classes = np.log1p(x[chosen]), classes[chosen]
    sums = x[:, 0].reshape(5, 35).sum(axis=1)
    means = (sums.sum() - sums) / 140
    np.testing.assert_allclose([float(lines[str(fold)][1]) for fold in range(5)], means, atol=1e-4)
    reference = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression()), x, classes, cv=KFold(5))
    np.testing.assert_allclose(float(lines["all"][0]), reference.mean(), atol=0.05)


# ---- examples/equinox_model.py ----------------------------------------------------------------------------------


def test_the_equinox_head_read_back_computes_what_numpy_does_of_its_weights_and_is_as_good_as_scikit_learn(tmp_path):
    lines = shown("equinox_model.py", "--steps=100", f"--out={tmp_path}")
    x, benign = load_breast_cancer(return_X_y=True)
    train, test = train_test_split(np.arange(569), test_size=169, stratify=benign, random_state=0)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    make_model = runpy.run_path(str(ROOT / "examples" / "equinox_model.py"))["make_model"]
    model = eqx.tree_deserialise_leaves(tmp_path / "equinox_model.eqx", make_model(jax.random.key(1)))
    hidden, out = ((np.asarray(model[k].weight, float), np.asarray(model[k].bias, float)) for k in (0, 3))
    logits = np.maximum(x[test] @ hidden[0].T + hidden[1], 0) @ out[0].T + out[1]
    accuracy = (logits.argmax(axis=1) == 1 - benign[test]).mean()
    assert lines["the last, read back"] == lines["400"] == [f"{accuracy:.3f}"]
    reference = LogisticRegression().fit(x[train], benign[train]).score(x[test], benign[test])
    np.testing.assert_allclose(accuracy, reference, atol=0.03)


# ---- examples/language_model.py ---------------------------------------------------------------------------------


def test_the_language_models_come_to_the_entropy_of_their_own_part_and_stay_far_from_it_on_the_other(tmp_path):
    (tmp_path / "steady.txt").write_text("ab" * 2000)
    (tmp_path / "coins.txt").write_bytes(np.random.default_rng(0).choice([72, 84], 4000).astype(np.uint8).tobytes())
    lines = shown("language_model.py", str(tmp_path / "steady.txt"), str(tmp_path / "coins.txt"), "--steps=60")
    losses = np.array([[float(loss) for loss in lines[name]] for name in ("steady", "coins", "all parts")])
    # One bit a coin; of a steady text only the first byte of a block is open, and no head is asked for that.
    np.testing.assert_allclose(losses[0, 0], 0, atol=0.1)
    np.testing.assert_allclose(losses[1, 1], 1, atol=0.1)
    np.testing.assert_allclose(losses[2], [0, 1], atol=0.15)
    assert min(losses[0, 1], losses[1, 0]) > 4


# ---- examples/cnn.py --------------------------------------------------------------------------------------------


def stripes_by_least_squares(image: np.ndarray) -> np.ndarray:
    """Returns the class whose stripes, at the best phase, explain most of an image: int[N] for uint8[N, 32, 32, 3]."""
    angles, place = np.pi * np.arange(5)[:, None, None] / 5, np.arange(32)
    along = (np.cos(angles) * place[:, None] + np.sin(angles) * place).reshape(5, 1024)
    basis = np.linalg.qr(np.stack([np.sin(along), np.cos(along)], axis=2)).Q  # [angles, pixels, 2]
    pixels = image.reshape(-1, 1024, 3).transpose(2, 0, 1)[:2, None] - 128.0  # [colours, 1, images, pixels]
    return ((pixels @ basis) ** 2).sum(axis=3).reshape(10, -1).argmax(axis=0)


def test_the_cnn_gets_better_with_images_and_comes_close_to_the_best_possible():
    lines = shown("cnn.py", "--images=400", "--steps=100")
    test = runpy.run_path(str(ROOT / "examples" / "cnn.py"))["make_images"](500, seed=1)
    best = (stripes_by_least_squares(test["image"]) == test["label"]).mean()
    np.testing.assert_allclose(float(lines["the best possible"][0]), best, atol=2e-3)
    few, most = float(lines["25"][0]), float(lines["400"][0])
    assert few + 0.2 < most
    assert best - 0.1 < most <= best
