"""TextDataModule: blocks, vocabularies and splits, compared with short texts counted by hand."""

import re

import numpy as np
import pytest

import hydrax as hx
from hydrax.datamodules import TextDataModule

FORM = re.compile(r"\S.*: .+\. Got .+, expected .+\. Fix: .+\.", re.DOTALL)


@pytest.fixture
def write(tmp_path):
    def write(content, name="text.txt"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def module(paths, **how):
    how = {"slices": lambda train: hx.Slices.full(2, len(train["tokens"])), "block_length": 3, **how}
    return TextDataModule(paths, **{"val_fraction": 0, **how})


def blocks(dataset):
    return [bytes(row).decode() for row in dataset["tokens"].astype(np.uint8)]


@pytest.mark.parametrize(
    ("text", "stride", "expected"),
    [
        ("abcd", None, ["abcd"]),
        ("abcdefg", None, ["abcd", "defg"]),
        ("abcdefghi", None, ["abcd", "defg"]),
        ("abcdefg", 2, ["abcd", "cdef"]),
        ("abcdefg", 1, ["abcd", "bcde", "cdef", "defg"]),
        ("abcdefghij", 5, ["abcd", "fghi"]),
    ],
)
def test_a_row_is_a_block_and_the_token_after_it(write, text, stride, expected):
    train = module(write(text), stride=stride).train_dataset()
    assert train["tokens"].dtype == np.uint8
    assert blocks(train) == expected


def test_by_default_every_token_but_the_first_is_a_target_once(write):
    text = "the quick brown fox"  # 19 = 6 blocks of 3, and the first token
    targets = module(write(text)).train_dataset()["tokens"][:, 1:]
    assert bytes(targets.ravel()).decode() == text[1:]


def test_the_end_of_a_text_is_held_out_before_it_is_cut_into_blocks(write):
    data = module(write("abcdefghijklmnopqrst"), val_fraction=0.3, stride=1)
    assert blocks(data.train_dataset())[-1] == "klmn"
    assert blocks(data.val_dataset()) == ["opqr", "pqrs", "qrst"]


def test_blocks_of_several_files_stay_inside_their_file_and_know_it(write):
    data = module(
        [write("abcdefg", "one"), write("ABCD", "two"), write("0123456789", "three")],
        val_slices=lambda val: None,
    )
    assert blocks(data.train_dataset()) == ["abcd", "defg", "ABCD", "0123", "3456", "6789"]
    assert data.documents.dtype == np.int32
    assert data.documents.tolist() == [0, 0, 1, 2, 2, 2]
    assert data.val_slices() is None


def test_each_file_holds_out_its_own_end(write):
    data = module([write("abcdefgh", "one"), write("ABCDEFGH", "two")], val_fraction=0.5)
    assert blocks(data.train_dataset()) == ["abcd", "ABCD"]
    assert blocks(data.val_dataset()) == ["efgh", "EFGH"]
    assert data.val_documents.tolist() == [0, 1]


def test_documents_make_slices_of_one_file_each(write):
    paths = [write("abcdefg", "one"), write("ABCD", "two")]
    data = module(paths, slices=lambda train: hx.Slices.from_mask(data.documents == [[0], [1]]))
    assert data.slices().mask().tolist() == [[True, True, False], [False, False, True]]


def test_overlapping_blocks_of_a_file_share_the_memory_of_its_text(write):
    tokens = module(write(bytes(10_000)), block_length=500, stride=1).train_dataset()["tokens"]
    assert tokens.shape == (9_500, 501)
    assert tokens.strides == (1, 1)


def test_a_character_is_its_place_among_the_sorted_characters(write):
    data = module(write("banana é😀"), tokens="char")
    assert data.vocabulary == " abné😀"
    assert data.num_tokens == 6
    train = data.train_dataset()
    assert train["tokens"].dtype == np.int32
    assert train["tokens"].tolist() == [[2, 1, 3, 1], [1, 3, 1, 0]]


def test_bytes_have_256_tokens_and_no_vocabulary(write):
    data = module(write("abcd"))
    assert (data.num_tokens, data.vocabulary) == (256, None)


@pytest.mark.parametrize("tokens", ["byte", "char"])
def test_decode_undoes_encode(write, tokens):
    data = module(write("banana é😀\r\n"), tokens=tokens)
    assert data.decode(data.encode("née 😀\r\n".replace("e", "b"))) == "néb 😀\r\n".replace("e", "b")


@pytest.mark.parametrize("tokens", ["byte", "char"])
def test_blocks_decode_to_the_text(write, tokens):
    data = module(write("tête-à-tête"), tokens=tokens, block_length=2)
    assert data.decode(data.train_dataset()["tokens"][0]) == {"byte": "tê", "char": "têt"}[tokens]


def test_half_a_character_decodes_to_the_replacement_character(write):
    assert module(write("abcd")).decode([0x61, 0xC3]) == "a\ufffd"


def test_the_vocabulary_is_that_of_the_training_part(write):
    assert module(write("abababab" + "abab"), tokens="char", val_fraction=1 / 3).vocabulary == "ab"


def test_a_given_vocabulary_is_sorted_and_used(write):
    data = module(write("ababababxyxy"), tokens="char", val_fraction=1 / 3, vocabulary="yxbax")
    assert data.vocabulary == "abxy"
    assert data.val_dataset()["tokens"].tolist() == [[2, 3, 2, 3]]


def test_test_files_are_tested_and_predicted_with_the_tokens_of_training(write):
    data = module(write("abcd"), tokens="char", test_paths=write("dcba", "test"))
    assert data.test_dataset()["tokens"].tolist() == [[3, 2, 1, 0]]
    assert data.predict_dataset() is data.test_dataset()


@pytest.mark.parametrize("none", [{}, {"test_paths": None}, {"test_paths": []}], ids=["default", "None", "empty"])
def test_without_test_files_there_is_no_test(write, none):
    assert module(write("abcd"), **none).test_dataset() is None


# ---- refused

BAD_TEXTS = {
    "empty": (b"", {}, "Got 0, expected at least 4"),
    "too short": (b"abc", {}, "Got 3, expected at least 4"),
    "too short to hold out": (b"abcdefgh", {"val_fraction": 0.25}, "from byte 6 on. Got 2"),
    "no training text left": (b"abcdefgh", {"val_fraction": 0.75}, "from byte 0 on. Got 2"),
    "too few characters": ("éé".encode(), {"tokens": "char"}, "Got 2, expected at least 4"),
    "not UTF-8": (b"abcd\xff", {"tokens": "char"}, "byte 4. Got 0xff"),
    "cut UTF-8": (b"abcd\xc3", {"tokens": "char"}, "byte 4. Got 0xc3"),
    "UTF-16": ("abcd".encode("utf-16"), {"tokens": "char"}, "byte 0. Got 0xff"),
    "unknown character": (b"aaaaaabbbb", {"tokens": "char", "val_fraction": 0.4}, "character 6. Got 'b', expected one"),
    "not in the vocabulary": (b"abcd", {"tokens": "char", "vocabulary": "abd"}, "character 2. Got 'c', expected one"),
}


@pytest.mark.parametrize(("content", "how", "got"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_text_that_makes_no_tokens_is_refused_by_name(write, content, how, got):
    path = write(content)
    with pytest.raises(hx.DataError, match=FORM) as raised:
        module(path, **how).setup("fit")
    assert got in str(raised.value)
    assert str(path) in str(raised.value)


def test_the_short_one_of_several_files_is_named(write):
    with pytest.raises(hx.DataError, match="two"):
        module([write("abcdefg", "one"), write("ab", "two")]).setup("fit")


BAD_ARGUMENTS = {
    "no files": ({"paths": []}, "paths="),
    "None for files": ({"paths": None}, "paths="),
    "number for files": ({"paths": 5}, "paths="),
    "numbers for files": ({"paths": [5]}, "paths="),
    "files without an order": ({"paths": {"one", "two"}}, "paths="),
    "number for test files": ({"test_paths": 5}, "test_paths="),
    "no length": ({"block_length": 0}, "block_length, stride="),
    "length of another type": ({"block_length": 8.0}, "block_length, stride="),
    "no stride": ({"stride": 0}, "block_length, stride="),
    "stride of another type": ({"stride": True}, "block_length, stride="),
    "other tokens": ({"tokens": "word"}, "tokens="),
    "vocabulary of bytes": ({"vocabulary": "ab"}, "vocabulary="),
    "no vocabulary": ({"vocabulary": "", "tokens": "char"}, "vocabulary="),
    "list for a vocabulary": ({"vocabulary": ["a", "b"], "tokens": "char"}, "vocabulary="),
    "all held out": ({"val_fraction": 1}, "val_fraction="),
    "less than nothing held out": ({"val_fraction": -0.1}, "val_fraction="),
    "NaN held out": ({"val_fraction": float("nan")}, "val_fraction="),
    "held out of another type": ({"val_fraction": "a tenth"}, "val_fraction="),
}


@pytest.mark.parametrize(("how", "got"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_an_argument_out_of_range_is_refused_at_once(how, got):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        module(**{"paths": "text.txt", **how})
    assert got in str(raised.value)


def test_a_character_without_a_token_cannot_be_encoded(write):
    with pytest.raises(hx.DataError, match=r"encode, character 2\. Got 'x'"):
        module(write("abcd"), tokens="char").encode("abx")


@pytest.mark.parametrize("tokens", [[0, -1], [0, 4], [0.5]])
def test_a_number_that_is_no_token_cannot_be_decoded(write, tokens):
    with pytest.raises(hx.DataError, match="A number is not a token"):
        module(write("abcd"), tokens="char").decode(tokens)


@pytest.mark.parametrize("tokens", ["byte", "char"])
@pytest.mark.parametrize("text", [5, None, b"abc", ["a"]])
def test_what_is_no_text_cannot_be_encoded(write, text, tokens):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        module(write("abcd"), tokens=tokens).encode(text)
    assert "TextDataModule.encode(text=)" in str(raised.value)


@pytest.mark.parametrize("tokens", ["byte", "char"])
@pytest.mark.parametrize("given", ["abc", None, ["a"], [[1, 2], [3]], {0: 1}])
def test_what_is_no_array_of_numbers_cannot_be_decoded(write, given, tokens):
    with pytest.raises(hx.ArgumentError, match=FORM) as raised:
        module(write("abcd"), tokens=tokens).decode(given)
    assert "TextDataModule.decode(tokens=)" in str(raised.value)
