"""`hydrax fit|validate|test|predict|plan --config` do what the Trainer does with the same arguments."""

import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import hydrax as hx
from hydrax import cli

MODULE = '''
import os, signal
import jax.numpy as jnp
import numpy as np
import optax
import hydrax as hx

class Scale(hx.HydraModule):
    """One factor.

    Args:
      lr: learning rate.
      start: the factor before training.
    """

    def __init__(self, lr: float | hx.PerHead = 0.1, start: float = 0.0):
        self.save_hyperparameters()

    def configure_model(self, key):
        return {"w": jnp.array(self.hparams.start)}

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return (batch["y"] - model["w"] * batch["x"]) ** 2

    validation_step = test_step = training_step

    def predict_step(self, model, batch, ctx):
        return model["w"] * batch["x"]


class Refused(Scale):
    def __init__(self):
        raise KeyError("a mistake of the user's own")


class Untraceable(Scale):
    def training_step(self, model, batch, ctx):
        return batch["no such column"]


class Line(hx.DataModule):
    def __init__(self, num_rows: int = 40, slices: hx.Slices | None = None, **settings):
        super().__init__(slices=slices or hx.Slices.prefix([5, 40], num_rows), **settings)
        self.num_rows = num_rows

    def train_dataset(self):
        x = np.linspace(-1, 1, self.num_rows, dtype=np.float32)
        return {"x": x, "y": 3 * x}

    val_dataset = test_dataset = predict_dataset = train_dataset


class CtrlC(hx.Callback):
    def on_train_steps_end(self, event):
        if not event.trainer.interrupted and event.step >= 4:
            os.kill(os.getpid(), signal.SIGINT)
'''
CONFIG = """
model:
  class_path: scale.Scale
  init_args:
    lr:
      class_path: hydrax.PerHead
      init_args: {values: [0.1, 0.2, 0.3]}
data:
  class_path: scale.Line
  init_args:
    slices:
      class_path: hydrax.Slices.prefix
      init_args: {lengths: [5, 20, 40], num_rows: 40}
    batch_size: 8
trainer:
  max_steps: 3
  steps_per_call: 2
  enable_progress_bar: false
  callbacks:
    class_path: EarlyStopping
    init_args: {monitor: val_loss, patience: 90}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with the module and the config, in which a fit of 12 steps has run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "scale.py").write_text(MODULE)
    (folder / "run.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        assert cli.main(["fit", "--config", "run.yaml", "--trainer.max_steps", "12"]) == 0
        yield folder
    sys.modules.pop("scale", None)


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(scope="module")
def by_hand(folder):
    """The same fit without the command."""
    import scale

    trainer = hx.Trainer(max_steps=12, steps_per_call=2, barebones=True)
    slices = hx.Slices.prefix([5, 20, 40], 40)
    module, data = scale.Scale(lr=hx.PerHead([0.1, 0.2, 0.3])), scale.Line(slices=slices, batch_size=8)
    return trainer, module, data, trainer.fit(module, data)


def hydrax(capsys, *words):
    """Returns the exit status, stdout and stderr."""
    status = cli.main(list(words))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def factors(run):
    return hx.Heads.load(f"hydrax_logs/{run}/checkpoints/last", run_module()).trainable["w"]


def run_module():
    import scale

    return scale.Scale(lr=hx.PerHead([0.1, 0.2, 0.3]))


def test_fit_trains_what_the_config_says_and_options_count_more(by_hand):
    np.testing.assert_array_equal(factors("version_0"), by_hand[3].heads.trainable["w"])


def test_the_config_saved_with_a_run_holds_every_argument_and_gives_the_run_again(capsys):
    saved = yaml.safe_load(Path("hydrax_logs/version_0/config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 12
    assert saved["trainer"]["on_nonfinite"] == "quarantine"
    assert saved["model"]["init_args"] == {
        "lr": {"class_path": "hydrax.PerHead", "init_args": {"values": [0.1, 0.2, 0.3]}},
        "start": 0.0,
    }
    words = ["--config", "hydrax_logs/version_0/config.yaml", "--trainer.default_root_dir", "again"]
    assert hydrax(capsys, "fit", *words)[0] == 0
    np.testing.assert_array_equal(factors("version_0"), factors("../again/hydrax_logs/version_0"))


@pytest.mark.parametrize(("command", "metric"), [("validate", "val_loss"), ("test", "test_loss")])
def test_an_evaluation_is_of_the_newest_checkpoint(capsys, by_hand, command, metric):
    trainer, module, data, result = by_hand
    status, printed, _ = hydrax(capsys, command, "--config", "run.yaml")
    wanted = getattr(trainer, command)(module, data, heads=result.heads, verbose=False)[metric]
    [line] = [line.split() for line in printed.splitlines() if line.startswith(metric)]
    assert status == 0
    np.testing.assert_allclose([float(cell) for cell in line[1:5]], stats(wanted), rtol=1e-3)


def stats(values):
    return [values.mean(), values.std(), values.min(), values.max()]


@pytest.mark.parametrize("reduce", [None, "mean"])
def test_predict_writes_what_the_trainer_gives(capsys, by_hand, reduce):
    trainer, module, data, result = by_hand
    more = ["--reduce", reduce] if reduce else []
    status, printed, _ = hydrax(capsys, "predict", "--config", "run.yaml", "--to", "out.npz", *more)
    assert (status, printed) == (0, "out.npz\n")
    wanted = trainer.predict(module, data, heads=result.heads, reduce=reduce)
    np.testing.assert_array_equal(np.load("out.npz")["predictions"], wanted)


def test_plan_prints_the_plan_and_the_memory_and_trains_nothing(capsys, by_hand):
    before = sorted(os.listdir("hydrax_logs"))
    status, printed, _ = hydrax(capsys, "plan", "--config", "run.yaml", "--trainer.max_steps=12")
    wanted = by_hand[0].plan()
    assert (status, printed.splitlines()[0]) == (0, str(wanted.plan))
    assert re.search(r"memory, on the fullest device: state \d+", printed)
    assert sorted(os.listdir("hydrax_logs")) == before


def test_after_ctrl_c_the_status_is_130_and_the_run_goes_on_to_the_same_bits(capsys, by_hand):
    words = ["fit", "--config", "run.yaml", "--trainer.max_steps=12", "--trainer.default_root_dir=cut"]
    assert hydrax(capsys, *words, "--trainer.callbacks+=scale.CtrlC")[0] == 128 + signal.SIGINT
    assert hydrax(capsys, *words, "--ckpt_path", "last")[0] == 0
    newest = max(os.listdir("cut/hydrax_logs"))
    assert yaml.safe_load(Path(f"cut/hydrax_logs/{newest}/config.yaml").read_text())["ckpt_path"] is None
    np.testing.assert_array_equal(factors(f"../cut/hydrax_logs/{newest}"), by_hand[3].heads.trainable["w"])


@pytest.mark.parametrize("words", [["--print_config"], ["--help"], ["--model.help", "scale.Scale"]], ids=" ".join)
def test_what_only_prints_ends_with_0_and_trains_nothing(capsys, words):
    before = sorted(os.listdir("hydrax_logs"))
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--config", "run.yaml", "--trainer.max_steps", "7", *words])
    assert end.value.code == 0
    assert sorted(os.listdir("hydrax_logs")) == before


def test_a_printed_config_is_the_whole_one(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "run.yaml", "--trainer.max_steps", "7", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["trainer"]["max_steps"], printed["trainer"]["log_every_n_steps"]) == (7, 50)


def test_help_says_what_each_option_does(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    printed = capsys.readouterr().out
    assert [name for name in ("--config", "--ckpt_path", "--trainer.max_steps", "--model", "--data")
            if name not in printed] == []  # fmt: skip
    assert "optimiser updates of every head" in printed
    headings = re.findall(r"^(?!usage)(\w[\w ]*):$", printed, re.MULTILINE)
    assert headings == ["options", "Module", "Data module", "Trainer"]


def test_the_help_of_a_class_has_a_heading_that_names_what_it_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--data.help", "ArrayDataModule"])
    headings = re.findall(r"^(?!usage)(\w[\w ]*):$", capsys.readouterr().out, re.MULTILINE)
    assert headings == ["Data module"]


@pytest.mark.parametrize(
    ("yaml_text", "words", "status", "parts"),
    [
        ("{}", ["--config", "none.yaml"], 2, ["File does not exist", "none.yaml"]),
        ("{}", ["--trainer.max_step=3"], 2, ["max_step. Got '3'", "the nearest name is max_steps"]),
        ("{}", ["--trainer.accelerator", "gpu"], 2, ["accelerator. Got 'gpu'", "JAX picks the device"]),
        ("trainer: {accelerator: gpu}", [], 2, ["accelerator", "JAX picks the device"]),
        ("{}", ["--trainer.max_steps=1.5"], 2, ["trainer.max_steps: Got 1.5, expected int", "Fix: "]),
        ("{}", ["--trainer.max_steps=-1"], 1, ["max_steps. Got -1, expected an int of 1 or more"]),
        ("trainer: {max_steps: {a: 1}}", [], 2, ["trainer.max_steps: Got {'a': 1}, expected int"]),
        ("{}", ["--trainer.logger=3"], 2, ["trainer.logger: Got 3, expected bool"]),
        ("seed_everything: 1", [], 2, ["'seed_everything' is not accepted"]),
        ("", [], 2, ["Unexpected config"]),
        ("trainer: {max_steps: 2, max_steps: 3}", [], 2, ["line 1: the key 'max_steps' is given twice"]),
        ("trainer: {}\nmodel: {}\ntrainer: {}", [], 2, ["line 3: the key 'trainer' is given twice"]),
        ("trainer: &all {callbacks: [*all]}", [], 2, ["an alias names a node that it is a part of"]),
        ("trainer: [", [], 2, ["Problems parsing config"]),
        ("{}", ["--model", "none.Scale"], 2, ["model: No module named 'none'"]),
        ("{}", ["--model", "scale"], 2, ["model: Got scale, expected the dotted path of a class"]),
        ("{}", ["--model", "scale.Line"], 2, ["model: ", "not correspond to a subclass of HydraModule"]),
        ("{}", ["--model.depth=3"], 2, ["model: Option 'depth' is not accepted"]),
        ("{}", ["--model.start=x"], 2, ["model.start: Got x, expected float"]),
        ("{}", ["--model.lr=[0.1,0.2,0.3]"], 2, ["model.lr: ", "{class_path: hydrax.PerHead, init_args: {values: "]),
        ("{}", ["--data.batch_sise=3"], 2, ["data: Option 'batch_sise' is not accepted"]),
        ("{}", ["--data.slices.lengths=[50]"], 1, ["Slice of head 0 is longer than the dataset"]),
        ("{}", ["--trainer.callbacks=Nothing"], 2, ["trainer.callbacks: Got Nothing, expected the dotted path"]),
        (
            "trainer: {callbacks: [{class_path: Timmer}, {class_path: Timer}]}",
            [],
            2,
            ["callbacks: Got Timmer, expected"],
        ),
        ("{}", ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=1"], 2, ["Invalid duration"]),
        ("{}", ["--ckpt_path", "nowhere"], 1, ["There is no checkpoint: nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_makes_no_run_is_said_in_one_line(capsys, yaml_text, words, status, parts):
    Path("more.yaml").write_text(yaml_text)
    config = ["--config", "run.yaml", "--config", "more.yaml"]
    got, _, said = hydrax(capsys, "fit", *config, *words)
    assert (got, said.count("\n")) == (status, 1)
    assert [part for part in parts if part not in said] == []


def test_predict_refuses_a_file_before_it_predicts(capsys):
    status, _, said = hydrax(capsys, "predict", "--config", "run.yaml", "--to", "out.csv")
    assert (status, said.count("\n")) == (1, 1)
    assert "Got '.csv', expected .npz or .safetensors" in said


def test_a_class_that_fails_shows_its_own_error():
    with pytest.raises(KeyError, match="a mistake of the user's own"):
        cli.main(["fit", "--config", "run.yaml", "--model", "scale.Refused"])


def test_a_step_that_fails_shows_its_line_before_the_one_of_hydrax(capsys):
    status, _, said = hydrax(capsys, "fit", "--config", "run.yaml", "--model", "scale.Untraceable")
    assert status == 1
    assert 'batch["no such column"]' in said
    assert said.splitlines()[-1].startswith("hydrax fit: A method failed while it was traced for one head")


def test_without_jsonargparse_the_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    status, _, said = hydrax(capsys, "fit", "--config", "run.yaml")
    assert status == 1
    assert said.splitlines()[-1].endswith("Fix: pip install 'hydrax-heads[cli]'.")
    assert hydrax(capsys, "heads", "hydrax_logs/version_0")[0] == 0


def test_the_page_about_it_runs_as_it_stands(capsys, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    for name, text in re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    lines = [
        line.split() for block in re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert [words for words in lines if hydrax(capsys, *words[1:])[0] != 0] == []
    assert np.load("predictions.npz")["predictions"].shape == (297, 10)
    assert np.load("head.npz")["kernel"].shape == (64, 10)
