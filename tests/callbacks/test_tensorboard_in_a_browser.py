"""What a user sees of a run of 784 heads in a real TensorBoard in a real browser: the numbers of the fit.

`make test-browser` runs it; it needs Chromium or Chrome and its ChromeDriver.
"""

import importlib.util
import json
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.browser

SCRIPT = Path(__file__).parents[2] / "docs" / "screenshots.py"
METRICS = ("val_loss", "val_accuracy")
HEADS = [0, 112, 224, 336, 447, 559, 671, 783]  # evenly from the shortest slice to the longest


@pytest.fixture(scope="module")
def pages():
    """docs/screenshots.py, which trains, serves and browses."""
    spec = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(pages, tmp_path_factory):
    return pages.train(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def address(pages, result):
    with pages.tensorboard(result.log_dir) as address:
        yield address


@pytest.fixture(scope="module")
def browser(pages):
    with pages.browser() as browser:
        yield browser


@pytest.fixture
def texts(pages, address, browser):
    """Returns all text of a page once the awaited text is there."""

    def read(part, *awaited):
        browser.get("about:blank")
        browser.get(address + part)
        return pages.wait_for(
            lambda: browser.execute_script(pages.READ_TEXTS), lambda found: all(text in found for text in awaited)
        )

    return read


def asked(address, plugin, **query):
    """Returns the server's answer to the request that the page makes."""
    with urllib.request.urlopen(f"{address}data/plugin/{plugin}?{urllib.parse.urlencode(query)}") as answer:
        return json.load(answer)


def shown(number):
    """Formats a number as the page does."""
    return f"{number:.4f}".rstrip("0")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("word", "of"), [("median", np.median), ("mean", np.mean), ("min", np.min), ("max", np.max)])
def test_the_scalars_of_all_heads_stand_there_as_numbers(texts, result, metric, word, of):
    expected = shown(of(result.metrics[metric].astype(np.float64)))
    tag = f"metrics%2F{metric}" if word == "mean" else f"spread%2F{metric}%2F{word}"
    found = texts(f"?tagFilter={tag}#timeseries", expected)
    row = found.index(".", found.index("Relative"))  # run, smoothed value, value, step
    assert found[row + 2 : row + 4] == [expected, "60"]


def test_at_first_sight_there_is_one_card_for_each_metric_and_then_the_figures(pages, texts, browser):
    groups = ("metrics", "plots", "run", "spread")
    found = texts("#timeseries", *groups, *METRICS, "Relative")
    expected = [f"metrics/{name}" for name in sorted(["train_loss", *METRICS])]
    cards = pages.wait_for(lambda: browser.execute_script(pages.READ_CARDS), lambda found: set(expected) < set(found))
    assert cards[: len(expected)] == expected
    # Cards below the window are made as one scrolls.
    assert {card.split("/")[0] for card in cards[len(expected) :]} == {"plots"}
    assert list(dict.fromkeys(text for text in found if text in groups)) == list(groups)


def test_eight_heads_stand_in_one_chart(texts, result):
    expected = [shown(result.metrics["val_loss"][head]) for head in HEADS]
    found = texts("?tagFilter=%5Emetrics%2Fval_loss%24#timeseries", "Relative", *expected)
    rows = found[found.index("Relative") :]
    assert [rows[rows.index(f"head_{head}") + 2] for head in HEADS] == expected


@pytest.mark.parametrize("metric", [*METRICS, "train_loss"])
def test_each_metric_has_a_margin_chart(texts, address, metric):
    assert texts("#custom_scalars", metric).count(metric) == 1
    [heads] = asked(address, "custom_scalars/layout")["category"]
    [chart] = [chart for chart in heads["chart"] if chart["title"] == metric]
    assert chart["margin"]["series"] == [
        {"value": f"metrics/{metric}", "lower": f"spread/{metric}/q10", "upper": f"spread/{metric}/q90"}
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_each_validation_metric_has_a_histogram_over_heads(texts, address, result, metric):
    tag = f"spread/{metric}/heads"
    assert tag in texts("#histograms", tag)
    *_, (_, step, bins) = asked(address, "histograms/histograms", run=".", tag=tag)
    left, right, counts = np.array(bins).T
    assert (step, counts.sum()) == (60, 784)
    # The server makes its own bins from those in the file, so a count may be spread over two of them.
    values = np.sort(result.metrics[metric].astype(np.float64))
    cumulative = np.searchsorted(values, right)
    assert np.abs(counts.cumsum() - cumulative).max() < 784 / 10
    assert (left[0], right[-1]) == pytest.approx((values[0], values[-1]))


@pytest.mark.parametrize("metric", METRICS)
def test_the_learning_curve_and_the_heat_map_are_shown(pages, texts, browser, metric):
    tags = {f"plots/learning_curve/{metric}", f"plots/heads_over_time/{metric}"}
    texts("#images", *tags)
    found = pages.wait_for(lambda: browser.execute_script(pages.READ_IMAGES), lambda found: tags <= set(found))
    assert {tag: tuple(found[tag]) for tag in tags} == {
        f"plots/learning_curve/{metric}": (700, 450),
        f"plots/heads_over_time/{metric}": (700, 600),
    }


@pytest.mark.parametrize("head", HEADS)
def test_the_table_of_hyper_parameters_has_each_head_with_its_score(texts, result, head):
    found = texts("#hparams", f"head_{head}", f"prefix({head + 1})")
    row = found[found.index(f"head_{head}") + 1 :]
    length, lr, recipe, accuracy, loss = row[:5]
    expected = [head + 1, np.geomspace(0.01, 0.1, 784)[head], *(result.metrics[name][head] for name in METRICS[::-1])]
    np.testing.assert_allclose([float(cell) for cell in (length, lr, accuracy, loss)], expected, rtol=1e-3)
    assert recipe == f"prefix({head + 1})"


def test_the_folder_holds_nine_files(result):
    assert len(list(result.log_dir.rglob("events.out.tfevents.*"))) == 9
