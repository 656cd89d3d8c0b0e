"""ModelSummary: the numbers of a small network, by hand."""

import logging

import pytest
from heads_under_test import NUM_ROWS, QUIET, Classifier, PlainClassifier, data_of

import hydrax as hx
from hydrax.callbacks import ModelSummary
from hydrax.errors import ArgumentError

SLICES = hx.Slices.prefix([40, 17, 9], NUM_ROWS)


@pytest.fixture(scope="module")
def text():
    summary = ModelSummary()
    trainer = hx.Trainer(max_steps=1, callbacks=[summary], **QUIET)
    trainer.fit(Classifier("mlp"), data_of(SLICES))
    return summary.text


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [("hidden.kernel", "[6, 8]", "48"), ("out.bias", "[3]", "3"), ("out.kernel", "[8, 3]", "24")],
)
def test_each_array_of_one_head_stands_there_with_shape_and_size(text, name, shape, size):
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    assert line.split(None, 1)[1].rsplit(None, 2) == [shape, "float32", size]


def test_no_more_lines_than_asked_for_and_the_rest_is_counted():
    summary = ModelSummary(max_lines=1)
    hx.Trainer(max_steps=1, callbacks=[summary], **QUIET).fit(PlainClassifier(), data_of(SLICES))
    assert summary.text.splitlines()[1:5] == [
        "name  shape  dtype    size",
        "bias  [3]    float32  3",
        "... and 1 more arrays",
        "21 parameters",
    ]


def test_the_totals_are_those_of_one_head_and_of_all(text):
    assert "\n83 parameters\n" in text  # 6 * 8 + 8 + 8 * 3 + 3
    # AdamW: two moments of each parameter and a count, 4 bytes each; 3 heads.
    assert f"3 heads: 249 parameters; {3 * (3 * 83 + 1) * 4 / 1e6:.1f} MB" in text


@pytest.mark.parametrize(("wanted", "lines"), [(True, 1), (False, 0)])
def test_the_trainer_says_it_unless_it_is_told_not_to(tmp_path, caplog, wanted, lines):
    how = {**QUIET, "enable_model_summary": wanted, "default_root_dir": tmp_path}
    with caplog.at_level(logging.INFO, "hydrax"):
        hx.Trainer(max_steps=1, **how).fit(PlainClassifier(), data_of(SLICES))
    assert caplog.text.count("Parameters of one head:") == lines


@pytest.mark.parametrize("value", [0, True, 1.5])
def test_a_count_that_is_none_is_refused(value):
    with pytest.raises(ArgumentError, match="max_lines"):
        ModelSummary(value)
