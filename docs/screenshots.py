"""Takes the pictures of docs/tensorboard.md: trains 784 heads and opens their run in TensorBoard in a browser.

    .venv/bin/python docs/screenshots.py

Needs Chromium (or Chrome) and ChromeDriver. tests/callbacks/test_tensorboard_in_a_browser.py checks the same pages.
"""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import hydrax as hx
from hydrax.datamodules import ArrayDataModule

IMAGES = Path(__file__).parent / "images"
HEADS = 784
# For headless use, and without the browser's own traffic, which fails if there is no network.
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
)
# All text of a page, including web components.
READ_TEXTS = """
const texts = [];
const walk = (node) => {
  if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) texts.push(node.textContent.trim());
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) if (!["STYLE", "SCRIPT"].includes(child.nodeName)) walk(child);
};
walk(document.body);
return texts;
"""
# Sizes of the pictures that a page has loaded, by tag. Their address contains the tag in base64.
READ_IMAGES = """
const found = {};
const walk = (node) => {
  if (node.nodeName === "IMG" && node.complete && node.naturalWidth) {
    const key = new URL(node.src).searchParams.get("blob_key").replaceAll("-", "+").replaceAll("_", "/");
    found[JSON.parse(atob(key))[3]] = [node.naturalWidth, node.naturalHeight];
  }
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) walk(child);
};
walk(document.body);
return found;
"""


# Titles of the cards that a page shows, without the name of their group.
READ_CARDS = """
const found = [];
const walk = (node) => {
  if (node.nodeName === "CARD-VIEW") {
    const title = node.querySelector(".tag, .card-title, tb-truncated-path");
    if (title) found.push(title.textContent.trim());
  }
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) walk(child);
};
walk(document.body);
return found;
"""


class Classifier(hx.HydraModule):
    """Softmax regression, each head with its own learning rate."""

    def __init__(self, lr: Any) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> nnx.Module:
        return nnx.Linear(6, 3, rngs=nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.adamw(self.hparams.lr)

    def training_step(self, model: Any, batch: Any, ctx: hx.Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])

    def validation_step(self, model: Any, batch: Any, ctx: hx.Context) -> jax.Array:
        logits = model(batch["x"])
        self.log("val_accuracy", logits.argmax(-1) == batch["y"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def train(root: Path, max_steps: int = 60) -> hx.FitResult:
    """Trains 784 heads; head k learns from the first k rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(HEADS + 200, 6)).astype(np.float32)
    rows = {"x": x, "y": (x[:, 0] > 0).astype(np.int32) + (x[:, 1] + rng.normal(size=len(x)) > 0.3)}
    train_rows, val_rows = (
        {name: column[part] for name, column in rows.items()} for part in np.split(np.arange(len(x)), [HEADS])
    )
    data = ArrayDataModule(
        train_rows, val=val_rows, batch_size=8, slices=hx.Slices.prefix(range(1, HEADS + 1), num_rows=HEADS)
    )
    trainer = hx.Trainer(
        max_steps=max_steps,
        val_check_interval=10,
        check_val_every_n_epoch=None,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=root,
    )
    return trainer.fit(Classifier(hx.PerHead(np.geomspace(0.01, 0.1, HEADS))), data)


@contextlib.contextmanager
def tensorboard(log_dir: Path) -> Iterator[str]:
    """Runs a TensorBoard server for a folder. Yields its address."""
    options = ["--logdir", log_dir.name, "--port", "0", "--load_fast", "false"]
    # Started in the parent folder, because some pages show the path as given.
    with subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *options], stderr=subprocess.PIPE, text=True, cwd=log_dir.parent
    ) as server:
        try:
            assert server.stderr is not None
            yield next(found.group() for line in server.stderr if (found := re.search(r"http://\S+", line)))
        finally:
            server.terminate()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Runs a headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as profile:
        for switch in (*SWITCHES.split(), f"--user-data-dir={profile}"):
            options.add_argument(switch)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def wait_for(read: Callable[[], Any], is_there: Callable[[Any], bool], secs: float = 60) -> Any:
    """Returns what `read` returns as soon as `is_there` accepts it, or after `secs` seconds."""
    end = time.monotonic() + secs
    while not is_there(found := read()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        result = train(Path(root))
        assert result.log_dir is not None
        with tensorboard(result.log_dir) as address, browser() as page:
            pages = {
                "time-series": "#timeseries",
                "margin-charts": "#custom_scalars",
                "figures": "#images",
                "hparams": "#hparams",
            }
            for name, part in pages.items():
                page.get(address + part)
                wait_for(
                    lambda: page.execute_script(READ_TEXTS), lambda texts: any("val_loss" in text for text in texts)
                )
                time.sleep(3)  # for what is drawn after the text
                page.save_screenshot(str(IMAGES / f"tensorboard-{name}.png"))


if __name__ == "__main__":
    main()
