"""The command `hydrax` prints what the run has saved; errors are one line, and exit statuses are right."""

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hydrax as hx
from hydrax import cli
from hydrax.callbacks import ModelCheckpoint
from hydrax.datamodules import ArrayDataModule
from hydrax.results.ledger import ledger, write_csv

LENGTHS, RATES = [12, 3, 7, 5], [0.1, 0.2, 0.3, 0.1]


class Mean(hx.HydraModule):
    def __init__(self, lr):
        self.save_hyperparameters()

    def configure_model(self, key):
        return {"w": jnp.zeros(())}

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return (batch["x"] - model["w"]) ** 2

    def validation_step(self, model, batch, ctx):
        self.log("val_w", -model["w"] + 0 * batch["x"])
        return (batch["x"] - model["w"]) ** 2


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    x = np.random.default_rng(0).normal(size=20).astype(np.float32)
    data = ArrayDataModule({"x": x}, val={"x": x}, slices=hx.Slices.random_subset(LENGTHS, 20), batch_size=4)
    return hx.Trainer(
        max_steps=6, callbacks=[ModelCheckpoint("val_loss")], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path_factory.mktemp("root"),
    ).fit(Mean(hx.PerHead(RATES)), data)  # fmt: skip


@pytest.fixture
def folder(result):
    return Path(result.log_dir)


def lines(capsys, *words):
    """Returns the exit status and the printed cells."""
    status = cli.main([str(word) for word in words])
    return status, [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]


def column(printed, name):
    head, *rows = printed
    return [row[head.index(name)] for row in rows]


def test_heads_lists_every_head_with_its_settings(capsys, folder):
    status, printed = lines(capsys, "heads", folder)
    assert status == 0
    assert column(printed, "head") == ["0", "1", "2", "3"]
    assert list(map(int, column(printed, "length"))) == LENGTHS
    assert list(map(float, column(printed, "lr"))) == RATES


def test_the_folder_of_checkpoints_does_too(capsys, folder):
    assert lines(capsys, "heads", folder / "checkpoints") == lines(capsys, "heads", folder)


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        (["--sort", "length"], ["1", "3", "2", "0"]),
        (["--sort", "length", "--reverse"], ["0", "2", "3", "1"]),
        (["--sort", "length", "--limit", "2"], ["1", "3"]),
        (["--reverse"], ["3", "2", "1", "0"]),
        (["--where", "lr=0.10"], ["0", "3"]),
        (["--where", "lr=0.1", "--where", "length=5"], ["3"]),
        (["--status", "ok"], ["0", "1", "2", "3"]),
        (["--status", "stopped"], []),
    ],
    ids=" ".join,
)
def test_heads_sorts_and_filters(capsys, folder, words, heads):
    status, printed = lines(capsys, "heads", folder, *words)
    assert (status, column(printed, "head")) == (0, heads)


def test_heads_are_sorted_by_any_metric_that_was_logged_and_an_unknown_one_is_refused(capsys, result, folder):
    order = np.argsort(-result.heads.trainable["w"], kind="stable")
    assert column(lines(capsys, "heads", folder, "--sort", "val_w")[1], "head") == list(map(str, order))
    assert cli.main(["heads", str(folder), "--sort", "val_ww"]) == 1
    assert "Unknown column: --sort. Got 'val_ww'" in capsys.readouterr().err


def test_any_metric_that_was_logged_is_the_score_of_a_ledger_and_an_unknown_one_is_refused(tmp_path):
    x = np.arange(4, dtype=np.float32)
    data = ArrayDataModule({"x": x}, val={"x": x}, slices=hx.Slices.prefix([2, 4], 4), batch_size=4)
    trainer = hx.Trainer(max_steps=1, barebones=True, default_root_dir=tmp_path)
    w = trainer.fit(Mean(0.5), data).heads.trainable["w"]
    assert [row["score"] for row in trainer.ledger("val_w")] == (-np.asarray(w)).tolist()
    with pytest.raises(hx.errors.ArgumentError, match="monitor=.*Got 'val_ww', expected one of .*val_w"):
        trainer.ledger("val_ww")


def test_what_is_no_number_comes_last(capsys, tmp_path):
    (tmp_path / "heads.csv").write_text("head,score\n0,\n1,2.5\n2,nan\n3,-1\n")
    assert column(lines(capsys, "heads", tmp_path, "--sort", "score")[1][:3], "head") == ["3", "1"]


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        ([], "20413"),
        (["--reverse"], "10423"),
        (["--reverse", "--limit", "3"], "104"),
        (["--where", "score=2.50"], "04"),
    ],
)
def test_equal_numbers_keep_their_order_and_what_is_no_number_comes_last_in_reverse_too(capsys, tmp_path, words, heads):
    (tmp_path / "heads.csv").write_text("head,score\n0,2.5\n1,7\n2,-1\n3,\n4,2.5\n")
    assert "".join(column(lines(capsys, "heads", tmp_path, "--sort", "score", *words)[1], "head")) == heads


def test_a_name_that_could_change_the_terminal_is_shown_with_its_escapes(capsys, tmp_path):
    (tmp_path / "heads.csv").write_bytes("head,reason\r\n0,größe \x1b[2J\r\n".encode())
    assert lines(capsys, "heads", tmp_path)[1][1] == ["0", r"größe \x1b[2J"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"head,score\n0,1.5,7\n",
        b"head,score\n0\n",
        b"head,score\n\xff\xfe,1\n",
        b'head,score\n0,"1',
        b"a\0b\n0,1\n",
    ],
    ids=["empty", "a cell too many", "a cell too few", "not UTF-8", "cut off", "a zero byte"],
)
def test_a_damaged_ledger_is_said_in_one_line(capsys, tmp_path, damage):
    (tmp_path / "heads.csv").write_bytes(damage)
    status = cli.main(["heads", str(tmp_path)])
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith(f"hydrax heads: Damaged ledger: {tmp_path / 'heads.csv'}. Got ")


def test_under_an_ascii_locale_other_letters_are_shown_as_escapes(tmp_path):
    (tmp_path / "heads.csv").write_text("head,größe\r\n0,ä\r\n", encoding="utf-8", newline="")
    code = f"from hydrax.cli import main; main(['heads', {str(tmp_path)!r}])"
    ascii_locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, **ascii_locale})
    assert (done.returncode, done.stdout.split()) == (0, [b"head", rb"gr\xf6\xdfe", b"0", rb"\xe4"])


@pytest.mark.parametrize("kind", ["last", "best"])
def test_export_writes_the_arrays_of_one_head(capsys, result, folder, tmp_path, kind):
    status, printed = lines(capsys, "export", folder, "--head", 2, "--kind", kind, "--to", tmp_path / "two.npz")
    assert (status, printed) == (0, [[str(tmp_path / "two.npz")]])
    wanted = Mean.load_from_checkpoint(folder / "checkpoints" / kind, head=2)
    [written] = np.load(tmp_path / "two.npz").values()
    np.testing.assert_array_equal(written, np.asarray(wanted["w"]))


@pytest.mark.slow
def test_a_million_heads_are_sorted_and_listed_within_seconds(capsys, tmp_path):
    slices, all_true = hx.Slices.full(1_000_000, num_rows=9), np.ones(1_000_000, bool)
    score = np.random.default_rng(0).random(1_000_000).astype(np.float32)
    state = {"live": all_true, "finite": all_true, "lost": ~all_true, "reasons": {}}
    write_csv(tmp_path / "heads.csv", ledger(slices, hx.HydraModule(), score=score, **state))
    began = time.process_time()
    status, printed = lines(capsys, "heads", tmp_path, "--status", "ok", "--sort", "score", "--limit", 2)
    assert time.process_time() - began < 6  # about 2; a list of dicts took 12
    assert column(printed, "head") == [str(head) for head in np.argsort(score, kind="stable")[:2]]


def test_export_writes_all_heads_beside_the_caller(capsys, result, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lines(capsys, "export", folder) == (0, [["heads.npz"]])
    [written] = np.load("heads.npz").values()
    np.testing.assert_array_equal(written, np.asarray(result.heads.trainable["w"]))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["heads", "{empty}"], ["The run has no ledger", "Got no heads.csv there"]),
        (["heads", "{run}", "--sort", "width"], ["--sort. Got 'width', expected one of head, ", "Fix: "]),
        (["heads", "{run}", "--where", "length"], ["Got 'length', expected COLUMN=VALUE"]),
        (["export", "{run}", "--to", "/dev/null/heads.npz"], ["/dev/null"]),
        (["heads", "{run}", "--where", "depth=3"], ["--where. Got 'depth'"]),
        (["export", "{empty}"], ["Fix: "]),
        (["export", "{run}", "--head", "4"], ["Got 4", "Fix: "]),
        (["export", "{run}", "--to", "heads.pkl"], ["'.pkl'", ".npz or .safetensors"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, folder, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    status = cli.main([word.format(run=folder, empty=tmp_path) for word in words])
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (1, 1)
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    "words", [[], ["heads"], ["train"], ["heads", ".", "--limit", "x"], ["heads", ".", "--limit=-1"]], ids=" ".join
)
def test_words_that_make_no_command_exit_with_2(capsys, words):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    assert {"heads", "export"} <= set(capsys.readouterr().out.split())


def test_it_is_installed_under_its_name(folder):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"hydrax": "hydrax.cli:main"}
    code = f"import sys; from hydrax.cli import main; sys.exit(main(['heads', {str(folder)!r}, '--limit', '1']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
