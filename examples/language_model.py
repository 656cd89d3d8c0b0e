"""Tiny transformers on bytes of text, each trained on another part of it: what does one part teach about the others?

The text is cut into blocks of 32 bytes, and each file is a part; by default these are the three longest documents of
this project. There is one head per part, and one for all parts. The table has the loss of every head on the held-out
end of every part, in bits per byte; an untrained model needs 8. With `--steps=800` a head of one part memorises it and
does worse than the head of all parts. `python examples/language_model.py [FILE ...]`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hydrax as hx
from hydrax.datamodules import TextDataModule

LENGTH = 32
DOCS = sorted((Path(__file__).parents[1] / "docs").glob("*.md"), key=lambda path: path.stat().st_size)[-3:]
Batch = dict[str, jax.Array]


# 1. One head: bytes in, logits of the next byte out. One block of attention and one MLP, each after an RMS norm.
class Transformer(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.byte, self.place = nnx.Embed(256, width, rngs=rngs), nnx.Embed(LENGTH, width, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(3)])
        self.attend = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 2 * width, rngs=rngs), nnx.Linear(2 * width, width, rngs=rngs)
        self.out = nnx.Linear(width, 256, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.byte(tokens) + self.place(jnp.arange(LENGTH))[None]
        query, key, value = jnp.split(self.attend(self.norms[0](x))[:, :, None], 3, axis=-1)  # one attention head
        x = x + jax.nn.dot_product_attention(query, key, value, is_causal=True)[:, :, 0]
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.out(self.norms[2](x))


class LanguageModel(hx.HydraModule):
    def __init__(self, width: int = 32, lr: float = 1e-2) -> None:
        self.save_hyperparameters()

    def configure_model(self, key: jax.Array) -> Transformer:
        return Transformer(self.hparams.width, nnx.Rngs(key))

    def configure_optimizers(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(self.hparams.lr))

    def training_step(self, model: Transformer, batch: Batch, ctx: hx.Context) -> jax.Array:
        tokens = batch["tokens"].astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:])
        return losses.mean(axis=1) / jnp.log(2)  # bits per byte, [B]

    predict_step = training_step  # the loss of each block


# 2. Files as blocks of bytes. The end of each file is held out, and the heads predict it after the fit.
class Texts(TextDataModule):
    def predict_dataset(self) -> Batch:
        return self.val_dataset()


def make_slices(documents: np.ndarray) -> hx.Slices:
    """Makes one slice per file, and a last one for all files."""
    return hx.Slices.concatenate([hx.Slices.partition_by(documents), hx.Slices.full(1, num_rows=len(documents))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", default=DOCS, help="text files, one part each")
    parser.add_argument("--steps", type=int, default=100, help="optimiser updates per head")
    args = parser.parse_args()
    data = Texts(args.files, block_length=LENGTH, slices=lambda _: make_slices(data.documents), batch_size=16)
    trainer = hx.Trainer(max_steps=args.steps, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(LanguageModel(), data)

    # 3. The loss of every head on every held-out block, [H, blocks], averaged over the blocks of each part.
    losses = trainer.predict()
    names = [path.stem for path in args.files]
    print(f"\n{'learned from':<24}" + "".join(f"{name:>24}" for name in names))
    for name, loss in zip([*names, "all parts"], losses, strict=True):
        means = np.bincount(data.val_documents, loss) / np.bincount(data.val_documents)
        print(f"{name:<24}" + "".join(f"{mean:>24.3f}" for mean in means))


if __name__ == "__main__":
    main()
