"""Files are written whole or not at all, as UTF-8 whatever the locale, links included."""

import os
import subprocess
import sys

import pytest

from hydrax.files import csv_text, draft, plain_cell, table_text, warn_if_unwritable, write_bytes, write_text

ASCII_LOCALE = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def test_a_text_is_utf_8_with_its_line_ends_as_given(tmp_path):
    assert write_text(tmp_path / "deep" / "a.txt", "ä\r\nb\n").read_bytes() == b"\xc3\xa4\r\nb\n"


def test_a_surrogate_is_written_as_its_escape(tmp_path):
    assert write_text(tmp_path / "a.txt", "x\udc80").read_bytes() == b"x\\udc80"


@pytest.mark.parametrize("sync", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path, sync):
    path = write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), draft(path, sync=sync) as beside:
        beside.write_bytes(b"ne")
        raise ZeroDivisionError
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("sync", [False, True])
def test_a_whole_draft_replaces_the_old_file(tmp_path, sync):
    path = write_bytes(tmp_path / "a", b"old")
    write_bytes(path, b"new", sync=sync)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    assert write_text(tmp_path / ("n" * 255), "x").read_text() == "x"


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    target = write_text(tmp_path / "there" / "a", "old")
    (tmp_path / "link").symlink_to(target)
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "new"


def test_a_file_has_the_mode_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").touch()
    assert write_text(tmp_path / "a", "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_in_the_way_is_a_warning_that_names_the_way_round(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    with warn_if_unwritable("The table", tmp_path / "a", "read it elsewhere"):
        write_text(tmp_path / "a", "x")
    assert caplog.text.count(f"The table could not be written: {tmp_path / 'a'}. Got IsADirectoryError") == 1
    assert "or read it elsewhere; the run continues without it." in caplog.text


def test_a_table_has_a_header_and_empty_cells_for_none():
    assert table_text([{"a": 1, "b": None}, {"a": 2.5, "b": 'say "x"'}]) == 'a,b\r\n1,\r\n2.5,"say ""x"""\r\n'


def run_in_ascii(code: str, *words: str, **how) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], env={**os.environ, **ASCII_LOCALE}, capture_output=True, **how
    )


def test_a_text_is_utf_8_under_an_ascii_locale(tmp_path):
    code = (
        "import locale, pathlib, sys; from hydrax.files import write_text\n"
        "assert locale.getencoding() != 'UTF-8'\n"
        "write_text(pathlib.Path(sys.argv[1]), '\\u00e4\\udc80')"
    )
    run_in_ascii(code, str(tmp_path / "a"), check=True)
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\\udc80"


FIT = """
import sys
import jax.numpy as jnp
import hydrax as hx
from heads_under_test import NUM_ROWS, PlainClassifier, data_of
from hydrax.callbacks import CSVLogger, HeadQuarantineReport, LearningCurvePlot, ModelCheckpoint, TensorBoardLogger

class Named(PlainClassifier):
    def __init__(self, name, lr, größe):
        self.save_hyperparameters()

    def configure_model(self, key):
        return {**super().configure_model(key), "maß": jnp.ones(())}

    def training_step(self, model, batch, ctx):
        loss = super().training_step(model, batch, ctx) * jnp.sqrt(self.hparams.größe * model["maß"])
        self.log("größe", loss)
        return loss

loggers = [CSVLogger(), TensorBoardLogger()]
others = [LearningCurvePlot("größe"), HeadQuarantineReport(), ModelCheckpoint()]
trainer = hx.Trainer(max_steps=3, log_every_n_steps=1, callbacks=[*loggers, *others], default_root_dir=sys.argv[1])
slices = hx.Slices.random_subset([40, 17, 9], NUM_ROWS)
trainer.fit(Named("ä\\udc80", 0.1, hx.PerHead([1.0, 2.0, -1.0])), data_of(slices))
assert [logger.num_dropped for logger in loggers] == [0, 0]
"""


def test_under_an_ascii_locale_no_logger_and_no_ledger_ends_a_fit_and_all_text_is_utf_8(tmp_path):
    (tmp_path / "fit.py").write_text(FIT, encoding="utf-8")
    done = run_in_ascii(
        "import runpy, sys; sys.path.insert(0, sys.argv[2]); runpy.run_path(sys.argv[1] + '/fit.py')",
        str(tmp_path),
        os.path.dirname(__file__),
    )
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "hydrax_logs").iterdir()
    read = {
        path.name: path.read_text(encoding="utf-8") for path in run.rglob("*.*") if path.suffix in (".csv", ".yaml")
    }
    assert sorted(read) == ["heads.csv", "hparams.yaml", "metrics.csv", "quarantine.csv"]
    assert [name for name, text in read.items() if "größe" not in text] == []
    # The file system's own encoding is ASCII there, so a file cannot have this name; that is said, and stops nothing.
    assert b"The learning curve could not be written" in done.stderr


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *(("=1+1", "'=1+1"), ("@a", "'@a"), ("-x", "'-x"), ("\tx", "'\tx")),
        *(("-1.5", "-1.5"), ("+inf", "+inf"), (-2, "-2"), ("a=b", "a=b")),
    ],
)
def test_text_that_a_spreadsheet_would_run_is_quoted_and_read_back(cell, written):
    line = csv_text([[cell]]).removesuffix("\r\n")
    assert (line, plain_cell(line)) == (written, str(cell))
