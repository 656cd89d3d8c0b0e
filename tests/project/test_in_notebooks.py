"""What a notebook shows of slices, data modules, plans and results: small, escaped, for light and dark pages."""

import html
import html.parser
import re

import numpy as np
import optax
import pytest
from flax import nnx

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

SLICES = hx.Slices.prefix([2, 6], num_rows=6)
ODD = "<script>alert('&')</script>"


class Line(hx.HydraModule):
    def configure_model(self, key):
        return nnx.Linear(2, 1, rngs=nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(0.1)

    def training_step(self, model, batch, ctx):
        error = model(batch[ODD])[:, 0]
        self.log(ODD, error)
        return error**2


@pytest.fixture(scope="module")
def shown():
    """Objects by name, with names of columns and metrics that are HTML."""
    data = ArrayDataModule({ODD: np.ones((6, 2), np.float32)}, slices=SLICES, batch_size=4)
    trainer = hx.Trainer(max_steps=2, barebones=True)
    result = trainer.fit(Line(), data)
    return {"slices": SLICES, "data": data, "result": result, "plan": result.plan, "report": trainer.plan()}


class Reader(html.parser.HTMLParser):
    """Collects the text and the tags, and checks that they are nested."""

    def __init__(self, source):
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        assert {name for name, _ in attrs} <= {"style"}  # no class, link or script

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", ["slices", "data", "result", "plan", "report"])
def test_it_is_small_escaped_and_has_no_colours_of_its_own(shown, name):
    source = shown[name]._repr_html_()
    assert len(source) < 3_000
    assert set(Reader(source).tags) <= {"div", "b", "pre", "table", "tr", "th", "td"}
    assert not re.search(r"#[0-9a-f]{3}|rgb|white|black|url\(", source)


def test_slices_and_data_modules_show_what_they_print(shown):
    lines = Reader(shown["slices"]._repr_html_()).text
    assert lines == SLICES.describe().replace("\n", "", 1)  # the title is an element of its own
    assert Reader(shown["data"]._repr_html_()).text == str(shown["data"]).replace("\n", "", 1)
    assert ODD in Reader(shown["data"]._repr_html_()).text


def test_plans_show_what_they_print(shown):
    assert str(shown["plan"]) in Reader(shown["plan"]._repr_html_()).text
    assert str(shown["report"]) in Reader(shown["report"]._repr_html_()).text


def test_a_result_shows_each_metric_over_its_heads(shown):
    result = shown["result"]
    text = Reader(result._repr_html_()).text
    assert text.startswith("2 heads after 2 steps, 2 of them live")
    for name, values in result.metrics.items():
        numbers = (np.median(values), values.mean(dtype=np.float64), values.min(), values.max())
        assert name + "".join(f"{number:.4g}" for number in numbers) + "2" in text


def test_a_data_module_that_is_not_set_up_can_be_shown():
    class Later(hx.DataModule):
        def train_dataset(self):
            return self.rows

    assert "has setup run?" in Later()._repr_html_()
