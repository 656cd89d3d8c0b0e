"""Hydrax saves to any path that the file system takes, and touches nothing there that it did not write."""

import logging
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoints_under_test import files_below, rewrite_meta, save
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, run

import hydrax as hx
from hydrax.callbacks import EarlyStopping, ModelCheckpoint
from hydrax.checkpoint import folders, format, make_way
from hydrax.datamodules import ArrayDataModule
from hydrax.errors import CheckpointError, DamagedCheckpointError

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)


def tree(value):
    return {"heads": {"w": jnp.full((3, 2), value, jnp.float32)}}


def value_of(step):
    return float(format.load(step, tree(0))["heads"]["w"][0, 0])


def newest(root):
    return value_of(folders.first_sound(root, format.check))


def snapshot(root):
    """All that lies below a folder, with its bytes."""
    found = {path.relative_to(root): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
    return found | {path.relative_to(root): path.readlink() for path in root.rglob("*") if path.is_symlink()}


# ---- any path

NAMES = [
    "runs[1]",
    "50%",
    "%41",
    "C#",
    "a?b",
    "a|b",
    "*",
    " spaces ",
    "ünï ☃",
    "dots...",
    "a\\b",
    "-rf",
    "'\"",
    "a:b",
    "~",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_path_that_the_file_system_takes_is_saved_to_and_read_from(name, tmp_path):
    root = tmp_path / name / "last"
    step = save(root, 3, tree(1), keep=1)
    assert step == root / "3"
    save(root, 4, tree(2), keep=1)
    assert newest(tmp_path / name) == 2
    assert sorted(path.name for path in root.iterdir()) == [".hydrax", "4"]


def test_a_fit_in_such_a_folder_is_resumed(tmp_path):
    root = tmp_path / "50% [1] C#?"
    first = run(PlainClassifier(), data_of(SLICES), None, [ModelCheckpoint()], max_steps=3, default_root_dir=root)
    assert first.result.log_dir.parent.parent == root
    resumed = run(PlainClassifier(), data_of(SLICES), "last", [ModelCheckpoint()], max_steps=5, default_root_dir=root)
    assert resumed.result.step == 5


def test_relative_paths_become_absolute_when_they_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saver = ModelCheckpoint(dirpath="mine")
    assert saver.dirpath == tmp_path / "mine"
    (tmp_path / "elsewhere").mkdir()
    step = format.save(folders.Path("relative/../here"), 1, tree(1), META, run="r")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert value_of(step) == 1
    assert (tmp_path / "here" / "1").is_dir()


META = {"kind": "heads", "ids": [0, 1, 2], "hparams": {}}


# ---- folders of others


@pytest.fixture
def images(tmp_path):
    """A folder with one folder a class, as image datasets have, and a draft that somebody else writes."""
    root = tmp_path / "images"
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        (root / str(label) / "one.png").write_text("a picture")
    (root / ".thesis.draft").mkdir()
    (root / ".thesis.draft" / "chapter").write_text("long work")
    (root / "2024").mkdir()
    return root


@pytest.fixture(scope="module")
def fitted():
    return run(PlainClassifier(), data_of(SLICES), max_steps=2)


@pytest.mark.parametrize("how", ["heads.save", "save_checkpoint", "ModelCheckpoint"])
def test_a_folder_with_folders_of_others_is_refused_and_nothing_in_it_changes(how, images, fitted):
    before = snapshot(images)
    match = r"The checkpoint folder holds other data: .*Got folders that Hydrax did not write \("
    with pytest.raises(CheckpointError, match=match):
        if how == "heads.save":
            fitted.result.heads.save(images)
        elif how == "save_checkpoint":
            fitted.trainer.save_checkpoint(images, keep=1)
        else:
            saver = ModelCheckpoint(dirpath=images.rename(images.with_name("last")).parent)
            images = images.with_name("last")
            run(PlainClassifier(), data_of(SLICES), None, [saver], max_steps=2)
    assert snapshot(images) == before


def test_an_empty_folder_of_others_is_enough_to_refuse(tmp_path, fitted):
    (tmp_path / "2024").mkdir()
    with pytest.raises(CheckpointError, match=r"holds other data: .*\(2024\)"):
        fitted.result.heads.save(tmp_path)


def test_what_others_put_beside_steps_stays_as_it_is(tmp_path):
    save(tmp_path, 1, tree(1), keep=1)
    for name in ("2024", "7", ".thesis.draft", ".hydrax-notes.draft", ".hydrax-3.draft", ".hydrax-4.deleted", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "1" / "mine").write_text("mine")
    (tmp_path / "0005").mkdir()
    (tmp_path / "9").write_text("a file")
    before = snapshot(tmp_path)
    save(tmp_path, 12, tree(2), keep=1)
    save(tmp_path, 13, tree(3), keep=1)
    assert {path: before[path] for path in before} == {p: c for p, c in snapshot(tmp_path).items() if p in before}
    assert newest(tmp_path) == 3
    assert not (tmp_path / "12").exists()


@pytest.mark.parametrize("ckpt_path", ["last", None], ids=["resumed", "fresh"])
def test_a_file_that_a_file_manager_left_in_a_step_stays_and_stops_no_fit(ckpt_path, tmp_path):
    def fit(max_steps, ckpt_path=None):
        saver = ModelCheckpoint(dirpath=tmp_path, keep_last=1)
        run(PlainClassifier(), data_of(SLICES), ckpt_path, [saver], max_steps=max_steps)
        return saver.last_model_path

    note = fit(2) / ".DS_Store"
    note.write_text("sizes of icons")
    assert fit(3, ckpt_path) == tmp_path / "last" / "3"
    assert note.is_file() if ckpt_path else (tmp_path / "last-1" / "2" / ".DS_Store").is_file()


def test_links_are_neither_followed_nor_deleted(tmp_path):
    outside = save(tmp_path / "outside", 1, tree(1))
    root = tmp_path / "root"
    save(root, 2, tree(2), keep=1)
    (root / "1").symlink_to(outside)
    save(root, 3, tree(3), keep=1)
    assert (root / "1").is_symlink()
    assert value_of(outside) == 1


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_a_step_whose_name_is_taken_is_refused(taken, tmp_path):
    save(tmp_path, 1, tree(1))
    if taken == "file":
        (tmp_path / "2").write_text("mine")
    else:
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "mine").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="name of a checkpoint is taken: .*2. Got something that Hydrax did not"):
        save(tmp_path, 2, tree(2))
    assert snapshot(tmp_path) == before


def test_a_damaged_step_with_a_file_of_others_is_passed_over_and_not_renamed(tmp_path):
    save(tmp_path, 1, tree(1))
    step = save(tmp_path, 2, tree(2))
    (step / "meta.json").write_text("{")
    (step / "mine").write_text("mine")
    assert newest(tmp_path) == 1
    assert (step / "mine").read_text() == "mine"


# ---- damage


def test_if_no_step_reads_none_is_renamed(tmp_path):
    for number in (1, 2):
        step = save(tmp_path, number, tree(number))
        (step / "arrays" / "manifest.ocdbt").write_bytes(b"")
    before = snapshot(tmp_path)
    with pytest.raises(DamagedCheckpointError, match=r"damaged: .*/2"):
        newest(tmp_path)
    assert snapshot(tmp_path) == before


def test_the_mark_of_a_folder_may_be_lost_or_damaged(tmp_path):
    save(tmp_path, 1, tree(1))
    for content in (None, b"", b"\xff", b"[]"):
        (tmp_path / folders.MARK).unlink() if content is None else (tmp_path / folders.MARK).write_bytes(content)
        assert newest(tmp_path) == 1
    save(tmp_path, 2, tree(2))
    assert newest(tmp_path) == 2


# ---- runs


def test_a_step_of_another_run_is_refused(tmp_path):
    save(tmp_path, 1, tree(1), run="one")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="folder holds checkpoints of another run: .*Got its steps 1,"):
        save(tmp_path, 2, tree(2), run="two")
    assert snapshot(tmp_path) == before


def test_a_folder_without_steps_goes_to_the_next_run(tmp_path):
    shutil.rmtree(save(tmp_path, 1, tree(1), run="one"))
    save(tmp_path, 1, tree(2), run="two")
    assert newest(tmp_path) == 2


def test_a_higher_step_of_another_run_is_not_the_newest(tmp_path, caplog):
    save(tmp_path / "a", 3, tree(1), run="one")
    shutil.copytree(save(tmp_path / "b", 9, tree(2), run="two"), tmp_path / "a" / "9")
    with caplog.at_level(logging.WARNING, "hydrax"):
        assert newest(tmp_path / "a") == 1
    assert "passed over: " in caplog.text
    assert "9 is a step of another run" in caplog.text
    save(tmp_path / "a", 4, tree(3), run="one", keep=1)
    assert newest(tmp_path / "a") == 3
    assert (tmp_path / "a" / "9").is_dir()


def test_a_step_copied_to_another_number_is_not_the_newest(tmp_path):
    save(tmp_path, 3, tree(1))
    shutil.copytree(save(tmp_path, 4, tree(2)), tmp_path / "90")
    assert newest(tmp_path) == 2


def test_a_folder_with_nothing_but_such_steps_says_what_they_are(tmp_path):
    save(tmp_path, 3, tree(1)).rename(tmp_path / "4")
    with pytest.raises(CheckpointError, match="There is no checkpoint: .*Got step 3 under another name, 4, expected"):
        newest(tmp_path)
    assert newest(tmp_path / "4") == 1


def test_making_way_renames_another_runs_folder_alone(tmp_path):
    root = tmp_path / "last"
    assert make_way(root, "one") is None
    save(root, 1, tree(1), run="one")
    assert make_way(root, "one") is None
    assert make_way(root, "two") == tmp_path / "last-1"
    assert newest(tmp_path / "last-1") == 1
    (root / "2024").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds other data"):
        make_way(root, "two")


def test_heads_do_not_take_the_place_of_a_run(tmp_path, fitted):
    fitted.trainer.save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        fitted.result.heads.save(tmp_path)


def test_a_resumed_run_keeps_its_mark_and_a_new_one_has_another(tmp_path):
    def marks(folder):
        return {format.read_meta(path)["run"] for path in folder.iterdir() if path.name.isdigit()}

    def fit(folder, max_steps, ckpt_path=None):
        saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=2)
        run(PlainClassifier(), data_of(SLICES), ckpt_path, [saver], max_steps=max_steps)

    fit(tmp_path, 2)
    first = marks(tmp_path / "last")
    fit(tmp_path, 4, ckpt_path=tmp_path / "last")
    assert marks(tmp_path / "last") == first
    fit(tmp_path, 2)
    assert marks(tmp_path / "last-1") == first
    assert marks(tmp_path / "last") != first
    # Resumed into a folder that holds another run: that one makes way, whatever step the resumed run is at.
    fit(tmp_path, 6, ckpt_path=tmp_path / "last-1")
    assert marks(tmp_path / "last") == first
    assert marks(tmp_path / "last-2") != first


# ---- a step that is saved again


class Line(hx.HydraModule):
    def configure_model(self, key):
        return {"w": jnp.zeros(1)}

    def configure_optimizers(self):
        return optax.sgd(0.5)

    def training_step(self, model, batch, ctx):
        return (batch["x"] * model["w"][0] - 1) ** 2

    def validation_step(self, model, batch, ctx):
        # Worse with every step, so that the best model is the one of the first validation.
        self.log("val_loss", jnp.abs(model["w"][0]) + 0 * batch["x"])


def test_what_a_callback_changes_at_the_last_step_is_in_last(tmp_path):
    x = {"x": np.ones(8, np.float32)}
    data = ArrayDataModule(x, val=x, batch_size=8, slices=hx.Slices.full(2, 8))
    stop = EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    saver = ModelCheckpoint(every_n_train_steps=2, dirpath=tmp_path)
    result = run(Line(), data, None, [stop, saver], max_steps=20, val_check_interval=1).result
    assert result.step == 2
    saved = hx.Heads.load(tmp_path / "last", Line())
    np.testing.assert_array_equal(saved.trainable["w"], result.heads.trainable["w"])


def test_metadata_may_be_rewritten_by_the_tests(tmp_path):
    step = save(tmp_path, 1, tree(1))
    rewrite_meta(step, lambda meta: None)
    assert format.check(step) == step
    assert len(files_below(step)) >= 3
