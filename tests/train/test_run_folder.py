"""The folders that runs write to, and those that a resume searches."""

import pytest
from heads_under_test import NUM_ROWS, QUIET, PlainClassifier, data_of

import hydrax as hx
from hydrax.errors import ArgumentError
from hydrax.results import write_csv
from hydrax.train import run_view
from hydrax.train.run_folder import check_root, find_newest, make_run_folder

SLICES = hx.Slices.prefix([5, 20], NUM_ROWS)


def save(folder, step=3):
    (folder / str(step)).mkdir(parents=True)
    return folder


def test_runs_get_folders_of_their_own_in_order(tmp_path):
    made = [make_run_folder(tmp_path).name for _ in range(11)]
    assert made == [f"version_{number}" for number in range(11)]


def test_a_folder_that_is_no_run_is_passed_over(tmp_path):
    (tmp_path / "hydrax_logs" / "version_old").mkdir(parents=True)
    assert make_run_folder(tmp_path).name == "version_0"


def test_the_newest_run_that_saved_is_found_by_number_and_not_by_name(tmp_path):
    folders = [make_run_folder(tmp_path) for _ in range(12)]
    save(folders[9] / "checkpoints" / "last")
    newest = save(folders[10] / "checkpoints" / "last")
    assert find_newest("last", tmp_path) == newest


def test_where_nothing_was_saved_nothing_is_found(tmp_path):
    (make_run_folder(tmp_path) / "checkpoints" / "last").mkdir(parents=True)
    assert find_newest("last", tmp_path) is None


def test_a_step_that_was_being_replaced_when_its_process_died_is_found(tmp_path):
    # A step that is saved again is renamed to this, and the process may die before the new one gets its name.
    last = save(make_run_folder(tmp_path) / "checkpoints" / "last", ".hydrax-8.old")
    assert find_newest("last", tmp_path) == last


def test_an_auto_resume_goes_on_from_a_step_that_was_being_replaced(tmp_path):
    how = {"max_steps": 4, "default_root_dir": tmp_path, **{**QUIET, "enable_checkpointing": True}}
    unbroken = hx.Trainer(**how).fit(PlainClassifier(), data_of(SLICES))
    last = unbroken.log_dir / "checkpoints" / "last"
    (last / "4").rename(last / ".hydrax-4.old")
    trainer = hx.Trainer(**{**how, "max_steps": 6})
    heard = []
    trainer.callbacks.append(hx.callbacks.LambdaCallback(on_train_start=lambda event: heard.append(event.step)))
    trainer.fit(PlainClassifier(), data_of(SLICES), ckpt_path="auto")
    assert heard == [4]


def test_a_change_of_the_working_directory_splits_no_run(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    moves = hx.callbacks.LambdaCallback(on_train_start=lambda event: monkeypatch.chdir(there))
    loggers = [hx.callbacks.CSVLogger(), hx.callbacks.TensorBoardLogger(), hx.callbacks.LearningCurvePlot()]
    how = {"max_steps": 4, "default_root_dir": "runs", **{**QUIET, "enable_checkpointing": True}}
    trainer = hx.Trainer(**how, callbacks=[moves, *loggers, hx.callbacks.ModelCheckpoint("val_loss", dirpath="saves")])
    result = trainer.fit(PlainClassifier(), data_of(SLICES))
    assert result.log_dir == here / "runs" / "hydrax_logs" / "version_0"
    assert {"metrics.csv", "learning_curve_val_loss.csv"} <= {path.name for path in result.log_dir.iterdir()}
    assert sorted(path.name for path in (here / "saves").iterdir()) == [".lock", "best", "heads.csv", "last"]
    trainer.fit(PlainClassifier(), data_of(SLICES), ckpt_path="last")
    trainer.validate(ckpt_path="best", verbose=False)
    assert list(there.iterdir()) == []


def test_the_files_of_a_data_module_are_those_of_the_directory_in_which_it_was_made(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("the cat sat on the mat")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n5,6\n")
    monkeypatch.chdir(tmp_path)
    text = hx.datamodules.TextDataModule("a.txt", block_length=4, slices=hx.Slices.full(1, 5))
    table = hx.datamodules.TabularDataModule("a.csv", target="y", slices=hx.Slices.full(1, 3))
    monkeypatch.chdir("/")
    assert len(table.train_dataset()["y"]) == 3
    assert text.train_dataset() is not None


def test_a_fit_that_is_refused_leaves_no_folder_behind(tmp_path):
    how = {"max_steps": 2, "default_root_dir": tmp_path, **{**QUIET, "enable_checkpointing": True, "logger": True}}
    hx.Trainer(**how).fit(PlainClassifier(), data_of(SLICES, val=None))
    for refused in ({"ckpt_path": "last"}, {}):  # a resume of another run, and a callback's argument
        trainer = hx.Trainer(**how, seed=1, callbacks=[] if refused else [hx.callbacks.EarlyStopping("nothing")])
        with pytest.raises(hx.errors.HydraxError):
            trainer.fit(PlainClassifier(), data_of(SLICES, val=None), **refused)
    assert [path.name for path in (tmp_path / "hydrax_logs").iterdir()] == ["version_0"]


def test_a_folder_of_the_user_s_own_is_the_only_one_looked_into(tmp_path):
    save(make_run_folder(tmp_path) / "checkpoints" / "last")
    mine = save(tmp_path / "mine" / "last")
    assert find_newest("last", tmp_path, tmp_path / "mine") == mine


@pytest.mark.parametrize("root", [None, 3, ["a"]])
def test_a_root_that_is_no_path_is_refused(root):
    with pytest.raises(ArgumentError, match=r"default_root_dir\. Got .* expected a path\. Fix: "):
        check_root(root)


def test_heads_csv_is_written_once_at_the_end_and_again_when_it_or_the_run_has_changed(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(run_view, "write_csv", lambda *how: (written.append(how[0]), write_csv(*how)))
    trainer = hx.Trainer(max_steps=2, default_root_dir=tmp_path, **{**QUIET, "enable_checkpointing": True})
    path = trainer.fit(PlainClassifier(), data_of(SLICES)).log_dir / "checkpoints" / "heads.csv"
    assert written == [path]
    whole = path.read_bytes()
    trainer.save_ledger(path)
    assert len(written) == 1
    for change in (path.unlink, lambda: path.write_text("mine")):
        change()
        trainer.save_ledger(path)
        assert path.read_bytes() == whole
    trainer.save_ledger(path, scores=[0.5, 0.25])
    assert path.read_bytes() != whole
    assert len(written) == 4
