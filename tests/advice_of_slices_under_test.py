"""Advice of slices and of values per head; `advice_under_test` tells what a case is."""

import numpy as np

import hydrax as hx

S, H = hx.Slices, hx.PerHead
ROWS, HEADS = 6, 2
LABELS = [0, 0, 1, 1, 2, 2]
TRIO = S.prefix([1, 2, 3], 5)

# ---- slices: constructors

SLICES = [
    ("Not a whole number in range: argument num_rows", lambda: S.full(2, "5"), lambda: S.full(2, 5)),
    ("Not a whole number in range: argument num_rows", lambda: S.leave_one_out(1), lambda: S.leave_one_out(2)),
    ("Not a whole number in range: argument num_heads", lambda: S.full(2.0, 5), lambda: S.full(2, 5)),
    ("Not whole numbers: argument starts", lambda: S.window([[0]], 2, 5), lambda: S.window([0], 2, 5)),
    ("Not whole numbers: argument seed", lambda: S.prefix(2, 5, seed=0.5), lambda: S.prefix(2, 5, seed=0)),
    ("Number out of range: argument seed", lambda: S.prefix(2, 5, seed=2**64), lambda: S.prefix(2, 5, seed=2**31)),
    (
        "Number out of range: argument seed at position 0",
        lambda: S.prefix(2, 5, seed=2**40),
        lambda: S.prefix(2, 5, seed=2**31),
    ),
    ("Lists of unequal lengths: argument", lambda: S.partition_by([[0], [0, 1]]), lambda: S.partition_by([0, 1])),
    (
        "Arguments disagree on the number of heads",
        lambda: S.window([0, 1], [1, 2, 3], 5),
        lambda: S.window([0, 1], 2, 5),
    ),
    ("Not iterable: argument indices", lambda: S.from_indices(5, 5), lambda: S.from_indices([[4]], 5)),
    ("Slice of head 0 is empty: a head needs a row", lambda: S.prefix([0, 2], 5), lambda: S.prefix([1, 2], 5)),
    (
        "Slice of head 1 is empty: a head needs a row",
        lambda: S.from_indices([[0], []], 5),
        lambda: S.from_indices([[0]], 5),
    ),
    ("No slices: a fit needs at least one head", lambda: S.from_indices([], 5), lambda: S.from_indices([[0]], 5)),
    ("Slice of head 1 is longer than the dataset", lambda: S.prefix([1, 6], 5), lambda: S.prefix([1, 6], 6)),
    ("Window outside the dataset: slice of head 1", lambda: S.window([0, 4], 2, 5), lambda: S.window([0, 3], 2, 5)),
    (
        "Window outside the dataset: slice of head 0",
        lambda: S.expanding_window(4, 1, 5, horizon=2),
        lambda: S.expanding_window(3, 1, 5, horizon=2),
    ),
    (
        "Too many heads: argument step",
        lambda: S.expanding_window(1, 1, 2**31 - 1),
        lambda: S.expanding_window(1, 300, 2**31 - 1),
    ),
    (
        "Neither sizes nor fractions: argument lengths",
        lambda: S.random_subset([0.5, 2.0], 5),
        lambda: S.random_subset([0.5, 1.0], 5),
    ),
    (
        "Slice of head 0 is not a list of row numbers",
        lambda: S.from_indices([[True, False]], 2),
        lambda: S.from_mask([[True, False]]),
    ),
    (
        "Slice of head 0 holds row 5 at position 1",
        lambda: S.from_indices([[0, 5]], 5),
        lambda: S.from_indices([[0, 5]], 6),
    ),
    (
        "Slice of head 0 holds a row twice",
        lambda: S.from_splits([([0, 0], [1])], 5),
        lambda: S.from_indices([[0, 0]], 5),
    ),
    (
        "Unknown part of a split",
        lambda: S.from_splits([([0], [1])], 5, "val"),
        lambda: S.from_splits([([0], [1])], 5, "test"),
    ),
    ("Not a split: head 0", lambda: S.from_splits([[0]], 5), lambda: S.from_splits([([0], [1])], 5)),
    (
        "Train and test rows of a split overlap",
        lambda: S.from_splits([([0, 1], [1])], 5),
        lambda: S.from_indices([[0, 1]], 5),
    ),
    (
        "Not one label per row, all of one type",
        lambda: S.partition_by([0.0, 1.0]),
        lambda: S.partition_by(np.array([0.0, 1.0]).astype(int)),
    ),
    (
        "Labels and dataset differ in rows",
        lambda: S.random_subset(2, 6, stratify=[0, 1]),
        lambda: S.random_subset(3, 6, stratify=LABELS),
    ),
    ("Invalid concentration: argument alpha", lambda: S.dirichlet(LABELS, 0, 2), lambda: S.dirichlet(LABELS, 100, 2)),
    ("Too few rows per head", lambda: S.dirichlet(LABELS, 1e-3, 6), lambda: S.dirichlet(LABELS, 1e-3, 1)),
    ("Invalid weights", lambda: S.from_weights([[True, False]]), lambda: S.from_mask([[True, False]])),
    ("Float weights without lengths", lambda: S.from_weights([[0.5, 0.5]]), lambda: S.from_weights([[0.5, 0.5]], 3)),
    (
        "Slice of head 0 has too many rows",
        lambda: S.from_weights([[2**31, 1]]),
        lambda: S.from_weights([[2**31, 1]], lengths=3),
    ),
    ("A weight is negative or not finite", lambda: S.from_weights([[-1, 1]]), lambda: S.from_weights([[0, 1]])),
    (
        "Slice of head 0 is empty: all its weights are 0",
        lambda: S.from_weights([[0, 0]]),
        lambda: S.from_weights([[0, 1]]),
    ),
    ("Invalid mask", lambda: S.from_mask([[0, 1]]), lambda: S.from_indices([[0, 1]], 2)),
    (
        "Mask of head 1 differs in length",
        lambda: S.from_mask([[True], [True, False]]),
        lambda: S.from_mask(np.ones((2, 3), bool)),
    ),
    (
        "Slice of head 0 is empty: every row is of its group",
        lambda: S.leave_group_out([1, 1]),
        lambda: S.leave_group_out([1, 2]),
    ),
    (
        "Slices cannot be concatenated",
        lambda: S.concatenate([S.full(1, 2), S.full(1, 3)]),
        lambda: S.concatenate([S.full(1, 3)] * 2),
    ),
    ("Not a Slices object", lambda: S.product([[0]], lr=2), lambda: S.product(S.full(1, 2), lr=2)),
    ("Not iterable: argument parts", lambda: S.concatenate(3), lambda: S.concatenate([TRIO])),
    # ---- slices: axes
    ("Axis name is empty or taken", lambda: S.product(TRIO, slice=2), lambda: S.product(TRIO, part=2)),
    ("Product has too many heads", lambda: S.product(TRIO, a=2**20, b=2**20), lambda: S.product(TRIO, a=2, b=2)),
    ("Invalid axis values", lambda: S.product(TRIO, lr=0.1), lambda: S.product(TRIO, lr=[0.1, 0.2])),
    ("Axis without values", lambda: S.product(TRIO, lr=0), lambda: S.product(TRIO, lr=5)),
    (
        "Slices have different axes",
        lambda: S.concatenate([S.product(TRIO, lr=[0.1, 0.2]), TRIO]),
        lambda: S.concatenate([S.product(TRIO, lr=[0.1, 0.2]), S.product(TRIO, lr=[1e-3])]),
    ),
    (
        "Axis 'lr' has values of two types",
        lambda: S.concatenate([S.product(TRIO, lr=[0.1]), S.product(TRIO, lr=["a"])]),
        lambda: S.concatenate([S.product(TRIO, lr=[0.1]), S.product(TRIO, lr=[0.2])]),
    ),
    # ---- slices: methods
    ("A head is selected twice, or none is", lambda: TRIO[[0, 0]], lambda: S.concatenate([TRIO[[0]], TRIO[[0]]])),
    ("Number out of range: argument heads", lambda: TRIO[[3]], lambda: TRIO[[2]]),
    ("Not a range of heads", lambda: TRIO[::0], lambda: TRIO[0:3:2]),
    ("Not whole numbers: argument heads", lambda: TRIO.rows("a"), lambda: TRIO.rows(1)),
    ("Number out of range: argument rows", lambda: TRIO.contains([0], [5]), lambda: TRIO.contains([0], [0])),
    ("Offsets of the wrong shape or type", lambda: TRIO.lookup([0.5]), lambda: TRIO.lookup([[0], [0], [0]])),
    ("Offset outside its slice", lambda: TRIO.lookup([[1], [0], [0]]), lambda: TRIO.lookup([[0], [0], [0]])),
    (
        "Complement of head 0 is empty",
        lambda: S.full(2, 3).complement(),
        lambda: S.full(2, 3).complement(allow_empty=True),
    ),
    ("Not one distinct id per head", lambda: TRIO.with_ids([1, 1, 2]), lambda: TRIO.with_ids([1, 3, 2])),
    ("Number out of range: argument ids", lambda: TRIO.with_ids([1, -3, 2]), lambda: TRIO.with_ids([1, 3, 2])),
    # ---- values per head
    ("PerHead needs a sequence of values", lambda: H(0.1), lambda: H([0.1, 0.2])),
    ("PerHead holds values that are not numbers", lambda: H(["a"]), lambda: H([1.0])),
    ("PerHead holds values that are not numbers", lambda: H([object()]), lambda: H([1.0])),
    ("PerHead holds a value that is not finite", lambda: H([1.0, np.nan]), lambda: H([1.0, 2.0])),
    ("PerHead holds an integer beyond 32 bits", lambda: H([0, 2**40]), lambda: H([0.0, 2.0**40])),
    ("PerHead holds arrays of different shapes", lambda: H([[1.0], [1.0, 2.0]]), lambda: H([[1.0, 0.0], [1.0, 2.0]])),
    ("No such head: PerHead", lambda: H([1, 2])[2], lambda: H([1, 2])[1]),
]
