"""README.md, CONTRIBUTING.md and docs/: their Python runs as printed, and the files, links and names in them exist."""

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hydrax as hx

ROOT = Path(__file__).parents[2]
PAGES = ["CONTRIBUTING.md", "README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
README_LINES, EXAMPLE_LINES = 150, 15


def text(page: str) -> str:
    return (ROOT / page).read_text()


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text(page), flags=re.DOTALL | re.MULTILINE)


def run(page: str, folder: Path) -> dict[str, Any]:
    """Runs all blocks of a page in an empty folder. Returns the names they define, and `printed`, their output."""
    session: dict[str, Any] = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        for number, block in enumerate(python_blocks(page)):
            exec(compile(block, f"{page}, block {number}", "exec"), session)
    return session | {"printed": printed.getvalue()}


@pytest.fixture(scope="module")
def readme(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("readme")
    return run("README.md", folder) | {"folder": folder}


@pytest.fixture(scope="module")
def getting_started(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("started")
    return run("docs/getting-started.md", folder) | {"folder": folder}


@pytest.fixture(scope="module")
def concepts(tmp_path_factory) -> dict[str, Any]:
    return run("docs/concepts.md", tmp_path_factory.mktemp("concepts"))


@pytest.fixture(scope="module")
def troubleshooting(tmp_path_factory) -> dict[str, Any]:
    with jax.numpy_rank_promotion("allow"):  # tests/conftest.py forbids it, but a reader's JAX allows it
        return run("docs/troubleshooting.md", tmp_path_factory.mktemp("trouble"))


@pytest.fixture(scope="module")
def performance(tmp_path_factory) -> dict[str, Any]:
    return run("docs/performance.md", tmp_path_factory.mktemp("performance"))


@pytest.fixture(scope="module")
def callback_guide(tmp_path_factory) -> dict[str, Any]:
    return run("docs/writing-a-callback.md", tmp_path_factory.mktemp("callback"))


@pytest.fixture(scope="module")
def datamodule_guide(tmp_path_factory) -> dict[str, Any]:
    return run("docs/writing-a-datamodule.md", tmp_path_factory.mktemp("datamodule"))


@pytest.fixture(scope="module")
def update_guide(tmp_path_factory) -> dict[str, Any]:
    return run("docs/writing-an-update.md", tmp_path_factory.mktemp("update"))


@pytest.fixture(scope="module")
def freezing(tmp_path_factory) -> dict[str, Any]:
    return run("docs/freeze-and-fine-tune.md", tmp_path_factory.mktemp("freezing"))


@pytest.fixture(scope="module")
def metrics_guide(tmp_path_factory) -> dict[str, Any]:
    return run("docs/metrics.md", tmp_path_factory.mktemp("metrics"))


@pytest.fixture(scope="module")
def losses_guide(tmp_path_factory) -> dict[str, Any]:
    return run("docs/losses.md", tmp_path_factory.mktemp("losses"))


@pytest.fixture(scope="module")
def saving(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("saving")
    return run("docs/saving.md", folder) | {"folder": folder}


# Other tests run the blocks of these pages. Of docs/from-lightning.md they run the ports; Lightning is not installed.
RUN_ELSEWHERE = {"docs/command-line.md", "docs/from-lightning.md"}


# ---- what the pages mention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)\)", text(page))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_repository_that_a_page_names_exists(page):
    named = re.findall(r"\b(?:tests|examples|benchmarks|hydrax|callbacks|datamodules|docs)/[\w/]+\.\w+\b", text(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_design_has_a_line_for_each_package_in_import_order():
    order = re.findall(
        r"^    ([\w, ]+?)(?:   .*)$", hydrax_docstring().split("Packages, in import order")[1], re.MULTILINE
    )
    packages = [name for names in order for name in names.split(", ")]
    assert re.findall(r"^\| `(\w+)` \|", text("docs/design.md"), re.MULTILINE) == packages


def hydrax_docstring() -> str:
    return ast.get_docstring(ast.parse(text("hydrax/__init__.py")), clean=False) or ""


ANSWERS = re.findall(r"^\| .*\? \| `(\S+)` \| `(\S+)` \|$", text("docs/find-your-way.md"), re.MULTILINE)


def test_at_least_twenty_questions_are_answered():
    assert len(ANSWERS) >= 20


@pytest.mark.parametrize(("file", "name"), ANSWERS)
def test_the_file_that_answers_a_question_defines_the_name_that_it_is_said_to(file, name):
    body = ast.parse(text(file)).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        assert found != []
        body = found[-1].body  # the last of overloads


@pytest.mark.parametrize("folder", ["hydrax", "callbacks", "datamodules", "examples", "benchmarks", "tests", "docs"])
def test_the_readme_has_a_line_for(folder):
    assert f"| [{folder}/]({folder}) |" in text("README.md")


def test_the_readme_can_be_read_in_one_go():
    assert len(text("README.md").splitlines()) <= README_LINES


def test_the_first_example_fits_on_a_screen():
    lines = [line for line in python_blocks("README.md")[0].splitlines() if line.strip()]
    assert len(lines) <= EXAMPLE_LINES


# ---- what their code does ---------------------------------------------------------------------------------------


def test_the_readme_s_example_has_the_accuracies_that_the_page_shows(readme):
    asked, shown = re.search(r"^```text\n>>> (.*)\narray\(\[(.*)\]\)\n```$", text("README.md"), re.MULTILINE).groups()
    of_page = np.array(shown.split(","), float)
    np.testing.assert_allclose(eval(asked, readme), of_page, atol=0.03)  # other machines round otherwise


def test_the_readme_s_last_head_is_as_good_as_scikit_learn(readme):
    x, y = readme["x"] / 16, readme["y"]
    theirs = LogisticRegression().fit(x[:1000], y[:1000]).score(x[1000:], y[1000:])
    assert readme["accuracy"].shape == (1000,)
    np.testing.assert_allclose(readme["accuracy"][-1], theirs, atol=0.02)


def test_the_readme_s_head_is_an_ordinary_layer(readme):
    assert isinstance(readme["result"].heads[7], nnx.Linear)


@pytest.mark.parametrize("pattern", ["events.out.tfevents.*", "checkpoints/last/*", "checkpoints/heads.csv"])
def test_the_readme_s_fit_writes(readme, pattern):
    assert list((readme["folder"] / "hydrax_logs" / "version_0").glob(pattern)) != []


def test_the_readme_s_one_call_gives_as_many_models_as_asked_for(readme):
    assert len(readme["models"]) == 20
    assert isinstance(readme["model"], nnx.Linear)


def test_the_first_fit_draws_the_learning_curve_that_scikit_learn_draws(getting_started):
    # Its logistic regression of each of these slices, scored on the same 597 rows.
    theirs = [0.26, 0.49, 0.62, 0.84, 0.87, 0.89, 0.92, 0.92]
    np.testing.assert_allclose(getting_started["result"].metrics["val_accuracy"], theirs, atol=0.12)


def test_validation_by_hand_gives_what_the_fit_gave_at_its_end(getting_started):
    in_fit = getting_started["result"].metrics["val_accuracy"]
    np.testing.assert_allclose(getting_started["scores"]["val_accuracy"], in_fit, rtol=1e-6)


def test_one_head_all_heads_and_a_loaded_head_say_the_same(getting_started):
    logits = np.asarray(getting_started["logits"])
    assert logits.shape == (5, 10)
    np.testing.assert_allclose(getting_started["all_logits"][7], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(getting_started["one"](getting_started["images"][:5]), logits)


def test_the_ensemble_is_the_mean_of_its_three_heads(getting_started):
    alone = getting_started["result"].heads.predict(getting_started["images"])[[5, 6, 7]]
    np.testing.assert_allclose(getting_started["ensemble"], alone.mean(axis=0), rtol=1e-4, atol=1e-4)


def test_an_exported_head_has_the_shapes_of_its_layers(getting_started):
    with np.load(getting_started["folder"] / "head_7.npz") as file:
        shapes = sorted(file[name].shape for name in file)
    assert shapes == [(10,), (32,), (32, 10), (64, 32)]


def test_heads_that_stop_early_say_why(getting_started):
    assert {reason[:44] for reason in getting_started["reasons"]} == {"val_loss did not improve in 3 validations (s"}
    assert not getting_started["early"].live.any()


@pytest.mark.cpu
def test_a_fit_in_two_parts_ends_with_the_bits_of_one(getting_started):
    parts, whole = (jax.tree.leaves(getting_started[name].heads.trainable) for name in ("second", "result"))
    for part, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part, other)


def test_the_sweep_has_a_line_for_each_rate_and_a_column_for_each_seed(getting_started):
    np.testing.assert_array_equal(getting_started["sweep"].axes["lr"].reshape(3, 3)[:, 0], [1e-3, 1e-2, 1e-1])
    np.testing.assert_array_equal(getting_started["sweep"].axes["seed"].reshape(3, 3)[0], [0, 1, 2])
    assert getting_started["by_rate"].shape == (3, 3)


def test_the_concepts_slices_are_what_they_are_said_to_be(concepts):
    np.testing.assert_array_equal(concepts["slices"].lengths, [24, 12, 7, 4])
    np.testing.assert_array_equal(concepts["slices"].rows(3), [12, 13, 14, 15])
    np.testing.assert_array_equal(concepts["some"].ids, [1, 3])
    np.testing.assert_array_equal(concepts["left_out"].lengths, [24 - 12, 24 - 4])


def test_the_concepts_batch_has_two_slots_of_padding(concepts):
    np.testing.assert_array_equal(concepts["batch"]["mask"].sum(axis=1), [6, 6, 6, 4])


@pytest.mark.cpu
def test_the_concepts_head_trained_alone_has_the_bits_it_has_among_others(concepts):
    np.testing.assert_array_equal(concepts["alone"].trainable["weight"][0], concepts["together"].trainable["weight"][2])


def test_the_absurd_learning_rate_is_quarantined_alone(troubleshooting):
    np.testing.assert_array_equal(troubleshooting["result"].live, [True, True, False])
    np.testing.assert_allclose(troubleshooting["result"].metrics["train_loss"][:2], 0, atol=1e-6)
    assert troubleshooting["result"].ledger[2]["status"] == "quarantined"


def test_the_wrong_loss_teaches_the_mean_of_all_labels(troubleshooting):
    labels = 3 * troubleshooting["x"][:, 0] + 1
    np.testing.assert_allclose(troubleshooting["wrong"].metrics["train_loss"], labels.var(), rtol=0.3)
    weight = troubleshooting["wrong"].heads.trainable
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(weight)) < 1.5  # the line's own are 3 and 1


def test_a_loss_of_each_row_that_has_the_wrong_shape_is_refused(troubleshooting):
    with jax.numpy_rank_promotion("allow"), pytest.raises(hx.ModuleError, match="A loss has the wrong shape"):
        troubleshooting["trainer"].fit(troubleshooting["Refused"](0.1), troubleshooting["data"])


def words(report: str) -> list[str]:
    """Returns the words of the report of a plan, without its values."""
    names, *lines = report.splitlines()
    return re.findall(r"\w+(?==)", names) + [line.split(":")[0] for line in lines]


@pytest.mark.cpu
def test_the_plan_s_report_has_the_lines_that_the_page_explains(performance):
    printed = re.search(r"```text\n(.*?)```", text("docs/performance.md"), flags=re.DOTALL)[1]
    assert words(str(performance["report"])) == words(printed)


@pytest.mark.cpu
def test_the_report_s_bytes_are_those_counted_by_hand(performance):
    parameters = 64 * 10 + 10
    assert performance["report"].memory.state == pytest.approx(256 * 3 * parameters * 4, rel=0.01)
    assert performance["report"].memory.data == 1797 * (64 + 1) * 4
    batches = 256 * 32 * (64 + 1) * 4
    assert performance["report"].work.bytes == pytest.approx(2 * 256 * 3 * parameters * 4 + batches, rel=0.01)


def test_the_guide_s_first_callback_stops_heads_that_have_reached_the_bound(callback_guide):
    losses = callback_guide["result"].metrics["val_loss"]
    np.testing.assert_array_equal(callback_guide["result"].live, losses >= 0.01)
    np.testing.assert_array_equal(callback_guide["result"].live, [True, False, False])


def test_the_guide_s_first_callback_survives_a_resume(callback_guide):
    stop = callback_guide["stop"]
    again = callback_guide["StopAtLoss"](0.01)
    again.load_state_dict(stop.state_dict())
    assert set(again.stopped_at) == {1, 2}
    assert again.stopped_at == stop.stopped_at


def test_the_guide_s_second_callback_adds_up_the_norms_of_the_updates(callback_guide):
    path = callback_guide["PathLength"]()
    info = hx.StepInfo(trainable=None, gradients=None, updates={"kernel": np.array([3.0, 4.0])}, loss=None, step=None)
    assert path.on_step(path.on_step(path.init(None), info), info)["length"] == 10.0


def test_the_guide_reads_the_second_callback_s_state_of_all_heads(callback_guide):
    assert callback_guide["lengths"].shape == (3,)
    assert np.all(callback_guide["lengths"] > 0)


def test_the_guide_s_data_module_scores_each_fold_by_a_head_that_has_not_seen_it(datamodule_guide):
    assert datamodule_guide["accuracy"].shape == (5,)
    # scikit-learn's logistic regression scores 0.956 to 0.981 on these folds.
    assert np.all(datamodule_guide["accuracy"] > 0.9)


def test_the_guide_s_sharpness_aware_heads_learn_the_line_but_for_the_widest_look_around(update_guide):
    weights = update_guide["flat"].heads.trainable["w"]
    np.testing.assert_allclose(weights[:2], [[1, 2], [1, 2]], atol=0.05)
    assert {"train_loss", "gradient_norm"} <= set(update_guide["flat"].metrics)


def test_the_guide_s_generators_come_near_the_mean_of_the_data(update_guide):
    made = update_guide["game"].heads.trainable["generator"]
    assert made.shape == (8,)
    assert np.all(np.abs(made - 2) < 1)  # they start at 0


def encoders(result):
    return np.stack([head.encoder.kernel.get_value() for head in result.heads])


def test_what_the_page_about_freezing_freezes_stays_and_the_rest_learns(freezing):
    fresh = np.asarray(freezing["frozen"].heads.state["encoder"]["kernel"])
    np.testing.assert_array_equal(encoders(freezing["two_rates"])[0], fresh[0])  # its learning rate is 0
    assert np.abs(encoders(freezing["two_rates"])[1:] - fresh[1:]).max(axis=(1, 2)).min() > 1e-3
    assert np.abs(encoders(freezing["unfrozen"]) - fresh).max(axis=(1, 2)).min() > 1e-3
    np.testing.assert_array_equal(encoders(freezing["tuned"]), [freezing["pretrained"].encoder.kernel.get_value()] * 3)
    np.testing.assert_array_equal(
        encoders(freezing["head_only"]), [freezing["pretrained"].encoder.kernel.get_value()] * 3
    )
    for name in ("frozen", "two_rates", "unfrozen", "head_only", "tuned"):
        assert np.all(freezing[name].metrics["train_loss"] < 0.2)  # the variance of the targets is 0.43


def test_the_heads_that_the_page_about_saving_loads_are_those_that_it_saved(saving):
    kernel = np.asarray(saving["result"].heads.trainable["kernel"])
    np.testing.assert_array_equal(saving["all_heads"].trainable["kernel"], kernel)
    np.testing.assert_array_equal(saving["head"].kernel.get_value(), kernel[2])
    np.testing.assert_array_equal(saving["model"].kernel.get_value(), kernel[2])


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_the_page_about_metrics_has_the_auc_of_scikit_learn(metrics_guide, name):
    result, rows = metrics_guide["result"], metrics_guide[name]
    expected = [roc_auc_score(rows["y"], np.asarray(head(rows["x"]))[:, 0]) for head in result.heads]
    np.testing.assert_allclose(result.metrics[f"val_auc/{name}"], expected, rtol=1e-5)


def test_the_contrastive_loss_of_the_page_about_losses_leaves_padding_out(losses_guide):
    views = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)
    found = losses_guide["contrast"](*views, np.arange(8) < 5)[:5]
    expected = losses_guide["contrast"](*views[:, :5], np.ones(5, bool))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_class_weights_of_the_page_about_losses_are_those_of_pytorch(losses_guide):
    labels, losses, mask = np.array([3, 8, 8, 1, 3, 3]), np.arange(6.0) ** 2, np.arange(6) < 4
    weights = (1 / np.bincount(losses_guide["y"]))[labels]
    found = (weights / np.asarray(losses_guide["masked_mean"](weights, mask)) * losses)[mask].mean()
    # torch.nn.functional.cross_entropy(weight=) of the live rows: sum of weighted losses over the sum of weights.
    np.testing.assert_allclose(found, (weights * losses)[mask].sum() / weights[mask].sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "balanced", "mixed", "contrastive", "spoken"])
def test_every_fit_of_the_page_about_losses_ends_with_finite_heads(losses_guide, name):
    result = losses_guide[name]
    assert result.live.all()
    assert np.isfinite(result.metrics["train_loss"]).all()


def test_a_class_that_a_head_has_not_seen_loses_probability_but_keeps_some(losses_guide):
    missing = losses_guide["probabilities"][:, losses_guide["missing"]]
    assert missing.min() > 0
    assert missing.mean() < 0.09  # it starts near a tenth


@pytest.mark.parametrize("file", ["head_2.npz", "from_checkpoint.npz"])
def test_an_exported_file_of_the_page_about_saving_holds_the_head(saving, file):
    with np.load(saving["folder"] / file) as arrays:
        np.testing.assert_array_equal(arrays["kernel"], saving["result"].heads.trainable["kernel"][2])


def test_orbax_reads_back_the_head_and_the_heads_that_the_recipe_saved(saving):
    kernel = np.asarray(saving["result"].heads.trainable["kernel"])
    np.testing.assert_array_equal(saving["restored"]["kernel"], kernel[2])
    np.testing.assert_array_equal(saving["restored_all"]["kernel"], kernel)


def test_the_page_about_loggers_names_them_as_they_are(tmp_path):
    names = [type(callback).__name__ for callback in run("docs/loggers.md", tmp_path)["trainer"].callbacks]
    assert names == ["WandbLogger", "MLflowLogger"]


def test_the_page_about_tensorboard_puts_a_figure_of_its_own_into_the_run(tmp_path):
    log_dir = run("docs/tensorboard.md", tmp_path)["result"].log_dir
    found = EventAccumulator(str(tmp_path / log_dir), {"images": 0, "tensors": 0}).Reload()
    assert [image.step for image in found.Images("scores")] == [1, 2, 3]
    assert (found.Images("scores")[0].width, found.Images("scores")[0].height) == (400, 300)
    assert len(found.Tensors("worst/text_summary")) == 3


def test_every_page_with_python_is_run():
    source = Path(__file__).read_text()
    run_here = {page for page in PAGES if f'run("{page}"' in source}
    assert {page for page in PAGES if python_blocks(page)} == run_here | RUN_ELSEWHERE
