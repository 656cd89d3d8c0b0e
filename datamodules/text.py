"""TextDataModule: local text files as blocks of bytes or characters, for language models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from hydrax import ArgumentError, DataError, DataModule, Slices
from hydrax.arguments import is_int, require

Dataset = dict[str, NDArray[Any]]


class TextDataModule(DataModule):
    """Cuts text files into blocks of tokens, for models that predict the next token.

    A dataset is `{"tokens": [N, block_length + 1]}`, uint8 for bytes and int32 for characters. Input and target share
    one column, which takes half the memory of two: your step uses `tokens[:, :-1]` and `tokens[:, 1:]`. No block
    extends from one file into the next. With stride = block_length, every token except a file's first is a target once.
    The blocks of a single file are views of its text, so a small stride takes no memory on the host; on the device it
    does.

    >>> import pathlib, tempfile
    >>> from hydrax.datamodules import TextDataModule
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "book.txt"
    >>> _ = path.write_text("the cat sat")
    >>> how = {"block_length": 4, "tokens": "char", "val_fraction": 0.0}
    >>> data = TextDataModule(path, slices=lambda train: hx.Slices.full(2, len(train["tokens"])), **how)
    >>> data.vocabulary
    ' acehst'
    >>> [data.decode(block) for block in data.train_dataset()["tokens"]]
    ['the c', 'cat s']

    Args:
      paths: a text file, or a list of them.
      block_length: tokens of one row that a model sees, 1 or more.
      slices: which training rows each head learns from, or a function that makes the slices from the training dataset,
        such as `lambda train: Slices.partition_by(data.documents)` for one head per file.
      stride: tokens between the starts of two consecutive blocks; None takes block_length.
      tokens: "byte" (256 tokens, any file) or "char" (the characters of a UTF-8 file).
      vocabulary: the characters that have a token; None takes those of the training text. Only with tokens="char".
      val_fraction: the share at the end of each file that is held out for validation, 0 <= val_fraction < 1. The text
        is split before it is cut into blocks, so no training block contains a validation token.
      test_paths: a text file, or a list of them, to test on and to predict; None means no test set.
      val_slices: which validation rows each head is validated on, or a function that makes them from the validation
        dataset; None takes all.
      settings: attributes of `DataModule`: batch_size, eval_batch_size, small_slices, check_finite, residence, ...

    Raises:
      ArgumentError: an argument has an invalid value.
      DataError: a file is missing, too short, not UTF-8, or contains a character without a token (raised by `setup`).
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        block_length: int,
        slices: Slices | Callable[[Dataset], Slices],
        stride: int | None = None,
        tokens: Literal["byte", "char"] = "byte",
        vocabulary: str | None = None,
        val_fraction: float = 0.1,
        test_paths: str | Path | Sequence[str | Path] | None = None,
        val_slices: Slices | Callable[[Dataset], Slices] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(slices=slices, val_slices=val_slices, **settings)
        self._block_length, self._stride = block_length, block_length if stride is None else stride
        self._tokens, self._given_vocabulary, self._val_fraction = tokens, vocabulary, val_fraction
        lengths = (self._block_length, self._stride)
        whole = all(is_int(length, 1) for length in lengths)
        share = isinstance(val_fraction, int | float) and 0 <= val_fraction < 1
        spelt = vocabulary is None or (tokens == "char" and isinstance(vocabulary, str) and vocabulary != "")
        listed, test_listed = _listed(paths), _listed(() if test_paths is None else test_paths)
        for name, value, right, expected, fix in (
            ("paths", paths, bool(listed) and _are_paths(listed), "a path, or a list of paths", 'paths="book.txt"'),
            ("test_paths", test_paths, _are_paths(test_listed), "a path, a list of paths, or None", "test_paths=None"),
            ("block_length, stride", lengths, whole, "ints of 1 or more", "block_length=128"),
            ("tokens", tokens, tokens in ("byte", "char"), '"byte" or "char"', 'tokens="byte"'),
            ("vocabulary", vocabulary, spelt, "a str, or None with bytes", 'vocabulary="ab", tokens="char"'),
            ("val_fraction", val_fraction, share, "0 <= val_fraction < 1", "val_fraction=0.1"),
        ):
            require(right, f"TextDataModule({name}=)", value, expected, f"set {fix}")
        # Absolute, so that os.chdir has no effect.
        self._paths, self._test_paths = ([Path(path).absolute() for path in some] for some in (listed, test_listed))

    def setup(self, stage: str) -> None:
        """Reads the files of the stage that have not been read yet."""
        if stage in ("fit", "validate"):
            self.train_dataset()
            self.val_dataset()
        else:
            self.test_dataset()

    def train_dataset(self) -> Dataset:
        return self._train[0]

    def val_dataset(self) -> Dataset | None:
        return self._val[0] if self._val_fraction else None

    def test_dataset(self) -> Dataset | None:
        return self._test[0] if self._test_paths else None

    def predict_dataset(self) -> Dataset | None:
        return self.test_dataset()

    # ---- tokens

    @property
    def num_tokens(self) -> int:
        """Number of tokens: the size of an embedding and of the logits."""
        return 256 if self._tokens == "byte" else self._characters.size

    @property
    def vocabulary(self) -> str | None:
        """The characters in the order of their tokens; None with bytes."""
        return None if self._tokens == "byte" else _to_text(self._characters)

    @property
    def documents(self) -> NDArray[np.int32]:
        """The file that each training row comes from, int32[N], as its place in `paths`."""
        return self._train[1]

    @property
    def val_documents(self) -> NDArray[np.int32]:
        """The file that each validation row comes from, int32[N]."""
        return self._val[1]

    def encode(self, text: str) -> NDArray[Any]:
        """Returns the tokens of a text: uint8[T], its UTF-8 bytes, or int32[T], its characters.

        Raises:
          ArgumentError: `text` is not a str.
          DataError: a character has no token.
        """
        require(isinstance(text, str), "TextDataModule.encode(text=)", text, "a str", "use decode() for tokens")
        if self._tokens == "byte":
            return np.frombuffer(text.encode(), np.uint8)
        return self._to_tokens(_to_points(text), "TextDataModule.encode")

    def decode(self, tokens: ArrayLike) -> str:
        """Returns the text of tokens, integers[T]; bytes that are not UTF-8 become the replacement character.

        Raises:
          ArgumentError: `tokens` are not numbers.
          DataError: a number is not a token.
        """
        try:
            given = np.asarray(tokens).ravel()
        except ValueError as error:  # lists of unequal length
            raise _not_tokens(tokens) from error
        if given.dtype.kind not in "biuf":
            raise _not_tokens(tokens)
        wrong = (given < 0) | (given >= self.num_tokens)
        if wrong.any() or (given.size and given.dtype.kind not in "iu"):
            at = int(np.argmax(wrong))
            raise DataError(
                f"A number is not a token: TextDataModule.decode, place {at}. Got {given[at]!r}, expected an integer "
                f"from 0 to {self.num_tokens - 1}. Fix: take the argmax of logits over {self.num_tokens} tokens."
            )
        if self._tokens == "byte":
            return given.astype(np.uint8).tobytes().decode(errors="replace")
        return _to_text(self._characters[given.astype(np.int64)])

    @cached_property
    def _characters(self) -> NDArray[np.uint32]:
        """Sorted code points; the place of a character is its token."""
        if self._given_vocabulary is not None:
            return np.unique(_to_points(self._given_vocabulary))
        return np.unique(np.concatenate([text[: self._cut(text)] for text in self._texts]))

    def _to_tokens(self, points: NDArray[Any], where: str, start: int = 0) -> NDArray[Any]:
        places = np.searchsorted(self._characters, points).clip(max=self.num_tokens - 1)
        unknown = self._characters[places] != points
        if unknown.any():
            at = int(np.argmax(unknown))
            raise DataError(
                f"A character has no token: {where}, character {start + at}. Got {chr(points[at])!r}, expected one of "
                f"the {self.num_tokens} characters of the vocabulary. Fix: pass vocabulary= with every character of "
                'the texts, or set tokens="byte".'
            )
        return places.astype(np.int32)

    # ---- files

    @cached_property
    def _texts(self) -> list[NDArray[Any]]:
        return [_read(path, self._tokens) for path in self._paths]

    @cached_property
    def _train(self) -> tuple[Dataset, NDArray[np.int32]]:
        return self._blocks(self._paths, [(0, text[: self._cut(text)]) for text in self._texts])

    @cached_property
    def _val(self) -> tuple[Dataset, NDArray[np.int32]]:
        return self._blocks(self._paths, [(self._cut(text), text[self._cut(text) :]) for text in self._texts])

    @cached_property
    def _test(self) -> tuple[Dataset, NDArray[np.int32]]:
        return self._blocks(self._test_paths, [(0, _read(path, self._tokens)) for path in self._test_paths])

    def _cut(self, text: NDArray[Any]) -> int:
        return text.size - round(text.size * self._val_fraction)

    def _blocks(self, paths: list[Path], parts: list[tuple[int, NDArray[Any]]]) -> tuple[Dataset, NDArray[np.int32]]:
        """Returns blocks of tokens and the file of each block; a part is its start in the file and its text."""
        width, blocks = self._block_length + 1, []
        for path, (start, text) in zip(paths, parts, strict=True):
            if text.size < width:
                raise DataError(
                    f"A text is too short: {path}, from {self._tokens} {start} on. Got {text.size}, expected at least "
                    f"{width}: a block, and the token after it. Fix: use a longer text, a smaller block_length, or "
                    "another val_fraction, the share of each file for validation."
                )
            tokens = text if self._tokens == "byte" else self._to_tokens(text, str(path), start)
            blocks.append(sliding_window_view(tokens, width)[:: self._stride])
        documents = np.repeat(np.arange(len(blocks), dtype=np.int32), [len(block) for block in blocks])
        return {"tokens": blocks[0] if len(blocks) == 1 else np.concatenate(blocks)}, documents


def _listed(paths: Any) -> list[Any]:
    """Returns the entries of a list; anything else is one entry, even a set, which has no order."""
    is_one = isinstance(paths, str | os.PathLike | Set | Mapping) or not isinstance(paths, Iterable)
    return [paths] if is_one else list(paths)


def _are_paths(paths: list[Any]) -> bool:
    return all(isinstance(path, str | os.PathLike) for path in paths)


def _not_tokens(tokens: Any) -> ArgumentError:
    return ArgumentError(
        f"Invalid argument: TextDataModule.decode(tokens=). Got {tokens!r:.60}, expected integers of one row. Fix: use "
        "encode() for text."
    )


def _read(path: Path, tokens: str) -> NDArray[Any]:
    """Reads the bytes of a file, uint8, or its code points, uint32."""
    if not path.is_file():
        raise DataError(
            f"A file is missing: {path}. Got no such file, expected a local text file. Fix: put it there; the "
            "module does not download files."
        )
    if tokens == "byte":
        return np.fromfile(path, np.uint8)
    try:
        return _to_points(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise DataError(
            f"A text is not UTF-8: {path}, byte {error.start}. Got 0x{error.object[error.start]:02x} "
            f'({error.reason}), expected UTF-8. Fix: save it as UTF-8, or set tokens="byte".'
        ) from error


def _to_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _to_text(points: NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
