"""MLflowLogger, read back by MLflow's own client from a store of files."""

import builtins
import csv
import io

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import MLflowLogger, ModelCheckpoint
from hydrax.errors import ArgumentError

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def files_are_enough():
    """MLflow refuses a store of files unless this variable allows it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        yield


def fit(folder, ckpt_path=None, max_steps=STEPS):
    logger = MLflowLogger("experiment", "name", tracking_uri=f"file://{folder}/store")
    trainer = hx.Trainer(
        max_steps=max_steps,
        chunk=4,
        callbacks=[logger, ModelCheckpoint(dirpath=folder)],
        default_root_dir=folder,
        log_every_n_steps=2,
        **QUIET,
    )
    result = trainer.fit(PlainClassifier(lr=hx.PerHead([0.1, 0.2, 0.3])), data_of(SLICES), ckpt_path)
    return result, logger


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *fit(folder)


@pytest.fixture(scope="module")
def client(fitted):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"file://{fitted[0]}/store")


def text(client, run_id, path):
    from mlflow.artifacts import load_text

    return load_text(f"{client.get_run(run_id).info.artifact_uri}/{path}")


def test_there_is_one_run_for_all_heads_and_it_is_finished(fitted, client):
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (fitted[2].run_id, "name", "FINISHED")
    assert fitted[2].num_dropped == 0


def test_the_numbers_are_those_of_the_fit(fitted, client):
    _, result, logger = fitted
    found = {m.step: m.value for m in client.get_metric_history(logger.run_id, "val_loss/mean")}
    assert found[STEPS] == pytest.approx(result.metrics["val_loss"].astype(np.float64).mean())
    assert [m.step for m in client.get_metric_history(logger.run_id, "train_loss/median")] == [2, 4, 6]


def test_the_values_of_all_heads_are_an_artifact(fitted, client):
    _, result, logger = fitted
    rows = list(csv.DictReader(io.StringIO(text(client, logger.run_id, f"heads/val_loss_{STEPS}.csv"))))
    np.testing.assert_array_equal([float(row["val_loss"]) for row in rows], result.metrics["val_loss"])


def test_each_head_has_a_row_in_a_table_and_there_is_a_learning_curve(fitted, client):
    rows = list(csv.DictReader(io.StringIO(text(client, fitted[2].run_id, "heads.csv"))))
    assert [(row["head"], row["length"]) for row in rows] == [("0", "40"), ("1", "17"), ("2", "9")]
    assert "learning_curve/val_loss.png" in [f.path for f in client.list_artifacts(fitted[2].run_id, "learning_curve")]


def test_the_hyper_parameters_are_its_parameters(fitted, client):
    found = client.get_run(fitted[2].run_id).data.params
    assert found == {"kind": "mlp", "lr": "PerHead([0.1, 0.2, 0.3], heads=3)"}


def test_a_resumed_fit_goes_on_with_its_run_and_logs_no_step_twice(fitted, client):
    folder, _, logger = fitted
    assert fit(folder, folder / "last", STEPS + 4)[1].run_id == logger.run_id
    steps = [m.step for m in client.get_metric_history(logger.run_id, "train_loss/mean")]
    assert steps == [2, 4, 6, 8, 10]


def test_without_mlflow_the_error_says_how_to_get_it(monkeypatch):
    known = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "mlflow":
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ArgumentError, match=r"pip install 'hydrax-heads\[mlflow\]'"):
        MLflowLogger()
