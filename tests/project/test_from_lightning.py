"""docs/from-lightning.md: its tables match the code, and its ports learn."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hydrax as hx
from hydrax import callbacks, lightning

PAGE = (Path(__file__).parents[2] / "docs" / "from-lightning.md").read_text()
# Of lightning 2.6.6: the arguments of its Trainer, in order, the hooks of its classes, its callbacks and loggers.
THEIRS = {
    "Trainer arguments": """
        accelerator strategy devices num_nodes precision logger callbacks fast_dev_run max_epochs min_epochs max_steps
        min_steps max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches
        overfit_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps
        enable_checkpointing enable_progress_bar enable_model_summary accumulate_grad_batches
        gradient_clip_val gradient_clip_algorithm deterministic benchmark inference_mode
        use_distributed_sampler profiler detect_anomaly barebones plugins sync_batchnorm
        reload_dataloaders_every_n_epochs default_root_dir enable_autolog_hparams model_registry""".split(),
    "Module hooks": """
        on_fit_start on_fit_end on_train_start on_train_end on_validation_start on_validation_end on_test_start
        on_test_end on_predict_start on_predict_end on_train_batch_start on_train_batch_end
        on_validation_batch_start on_validation_batch_end on_test_batch_start on_test_batch_end
        on_predict_batch_start on_predict_batch_end on_validation_model_zero_grad on_validation_model_eval
        on_validation_model_train on_test_model_eval on_test_model_train on_predict_model_eval
        on_train_epoch_start on_train_epoch_end on_validation_epoch_start on_validation_epoch_end
        on_test_epoch_start on_test_epoch_end on_predict_epoch_start on_predict_epoch_end on_before_backward
        on_after_backward on_before_optimizer_step configure_sharded_model on_save_checkpoint
        on_load_checkpoint on_before_zero_grad configure_model""".split(),
    "Data hooks": """
        prepare_data setup teardown train_dataloader test_dataloader val_dataloader predict_dataloader
        transfer_batch_to_device on_before_batch_transfer on_after_batch_transfer""".split(),
    "Callback hooks": """
        state_key setup teardown on_fit_start on_fit_end on_sanity_check_start on_sanity_check_end
        on_train_batch_start on_train_batch_end on_train_epoch_start on_train_epoch_end
        on_validation_epoch_start on_validation_epoch_end on_test_epoch_start on_test_epoch_end
        on_predict_epoch_start on_predict_epoch_end on_validation_batch_start on_validation_batch_end
        on_test_batch_start on_test_batch_end on_predict_batch_start on_predict_batch_end on_train_start
        on_train_end on_validation_start on_validation_end on_test_start on_test_end on_predict_start
        on_predict_end on_exception state_dict load_state_dict on_save_checkpoint on_load_checkpoint
        on_before_backward on_after_backward on_before_optimizer_step on_before_zero_grad""".split(),
    "Callbacks, loggers and other classes": """
        BackboneFinetuning BaseFinetuning BasePredictionWriter BatchSizeFinder Checkpoint DeviceStatsMonitor
        EarlyStopping GradientAccumulationScheduler LambdaCallback LearningRateFinder LearningRateMonitor
        ModelCheckpoint ModelPruning ModelSummary OnExceptionCheckpoint ProgressBar RichModelSummary
        RichProgressBar StochasticWeightAveraging SpikeDetection ThroughputMonitor Timer TQDMProgressBar
        EMAWeightAveraging WeightAveraging CSVLogger MLFlowLogger TensorBoardLogger WandbLogger""".split(),
}
TRAINER = lightning.ARGUMENTS["Trainer"]
OURS = {
    "Trainer arguments": set(inspect.signature(hx.Trainer).parameters),
    "Trainer methods and attributes": set(dir(hx.Trainer)),
    "Module hooks": set(dir(hx.HydraModule)),
    "Data hooks": set(dir(hx.DataModule)),
    "Module attributes": set(dir(hx.HydraModule)),
    "Callback hooks": set(dir(hx.Callback)),
    "Callbacks, loggers and other classes": set(callbacks.__all__),
}
DATA_HOOKS = lightning.DATA_HOOKS | lightning.DATA_ATTRIBUTES
# What an error says of each name that is refused, by the section of the page that lists it.
REFUSED = {
    "Trainer arguments": {n: how for n, how in TRAINER.items() if n in THEIRS["Trainer arguments"]},
    "Trainer methods and attributes": lightning.TRAINER_ATTRIBUTES,
    "Module hooks": {n: how for n, how in lightning.MODULE_HOOKS.items() if n not in {*DATA_HOOKS, "prepare_data"}},
    "Module attributes": lightning.MODULE_ATTRIBUTES,
    "Data hooks": DATA_HOOKS,
    "Callback hooks": lightning.CALLBACK_HOOKS | lightning.CALLBACK_ATTRIBUTES,
    "Callbacks, loggers and other classes": lightning.CLASSES,
    "Arguments of methods, callbacks and data modules": {
        f"{owner}({name})": how
        for owner, names in lightning.ARGUMENTS.items()
        for name, how in names.items()
        if owner != "LambdaCallback" and (owner, name) not in {("Trainer", one) for one in THEIRS["Trainer arguments"]}
    },
}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> dict[str, tuple[str, str]]:
    """Returns the counterpart of each name of Lightning, and how it differs."""
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", section(title), flags=re.MULTILINE)
    return {name.replace("\\", ""): (here, how) for name, here, how in rows if name != "Lightning"}


def missing(title: str, names: set[str]) -> set[str]:
    """Returns the names that a section does not contain."""
    return names - set(re.findall(r"\w+", section(title)))


def test_every_argument_of_lightnings_trainer_has_a_row_in_its_order():
    assert list(table("Trainer arguments")) == THEIRS["Trainer arguments"]


@pytest.mark.parametrize("title", THEIRS)
def test_every_name_of_lightnings_has_a_row(title):
    assert set(THEIRS[title]) - set(table(title)) == set()


@pytest.mark.parametrize("title", OURS)
def test_what_is_said_to_be_here_is_here(title):
    assert {here for here, _ in table(title).values()} - OURS[title] - {"-"} == set()


@pytest.mark.parametrize("title", OURS)
def test_a_row_says_same_or_different_of_what_is_here(title):
    here = {name: how for name, (here, how) in table(title).items() if here != "-"}
    assert {name: how for name, how in here.items() if not re.match("same|different: ", how)} == {}


@pytest.mark.parametrize("title", REFUSED)
def test_every_name_that_is_refused_is_on_the_page_with_the_words_of_the_message(title):
    rows = {name: how.removeprefix("different: ") for name, (_, how) in table(title).items()}
    assert {name: rows.get(name) for name in REFUSED[title]} == REFUSED[title]


@pytest.mark.parametrize("title", REFUSED)
def test_every_name_of_the_page_that_is_not_here_is_refused(title):
    assert set(table(title)) - OURS.get(title, set()) - {"__init__"} == set(REFUSED[title])


@pytest.mark.parametrize("title", OURS)
def test_what_is_the_same_has_the_same_name(title):
    same = {name: here for name, (here, how) in table(title).items() if how.startswith("same")}
    assert same == {name: name for name in same}


@pytest.mark.parametrize(
    ("title", "kind"), [("Module hooks", hx.HydraModule), ("Callback hooks", hx.Callback)], ids=["module", "callback"]
)
def test_every_public_method_has_a_place(title, kind):
    internal = {"is_checkpoint"}
    assert missing(title, {name for name in vars(kind) if not name.startswith("_")} - internal) == set()


@pytest.mark.parametrize("title", ["Trainer arguments", "Callbacks, loggers and other classes"])
def test_every_argument_and_every_callback_has_a_place(title):
    assert missing(title, OURS[title]) == set()


@pytest.mark.parametrize("name", sorted(TRAINER))
def test_an_argument_that_is_not_here_is_answered_by_name(name):
    with pytest.raises(hx.ArgumentError, match=rf"{name}\. Got 1, expected no such argument here\. Fix: "):
        hx.Trainer(**{name: 1})


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns the names that the Hydrax blocks of the page define."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    session: dict[str, Any] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("ports"))
        for number, block in enumerate(blocks[1:]):  # the first is Lightning's
            exec(compile(block, f"from-lightning.md, block {number + 1}", "exec"), session)
    return session


def test_each_autoencoder_beats_the_mean_image(ports):
    x = ports["x"]
    error = ((np.asarray(ports["autoencoders"].heads.predict(x)) - x) ** 2).mean(axis=(1, 2))
    assert error.shape == (10,)
    assert (error < x.var(axis=0).mean()).all()


def test_a_classifier_of_more_rows_is_better(ports):
    accuracy = ports["classifiers"].metrics["val_acc"]
    assert accuracy[0] < accuracy[2]
    assert accuracy[2] > 0.85  # scikit-learn's LogisticRegression has 0.91 of all 1,500 rows
