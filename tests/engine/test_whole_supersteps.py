"""The program for whole supersteps, which a GPU runs, learns what the other one does: shown on any device."""

import numpy as np
import pytest
from heads_under_test import NUM_ROWS, PlainClassifier, data_of, run

import hydrax as hx
from hydrax.engine import devices

SLICES = hx.Slices.random_subset([40, 17, 9], NUM_ROWS, seed=1)


def fit(steps, **how):
    return run(PlainClassifier(), data_of(SLICES), max_steps=steps, steps_per_call=3, chunk=1, devices=1, **how)


def programs(fitted):
    return fitted.trainer._run.planned.engine.programs["superstep"].num_compiled


@pytest.mark.parametrize(("steps", "expected"), [(6, 2), (7, 2), (2, 1)])
def test_it_learns_the_same_and_is_made_where_a_superstep_is_whole(monkeypatch, steps, expected):
    monkeypatch.setattr(devices, "loops_need_host", lambda device: False)
    plain = fit(steps)
    monkeypatch.setattr(devices, "loops_need_host", lambda device: True)
    whole = fit(steps)
    assert (programs(plain), programs(whole)) == (1, expected)
    assert list(whole.arrays) == list(plain.arrays)
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(
            np.asarray(whole.arrays[name], np.float64),
            np.asarray(array, np.float64),
            rtol=1e-5,
            atol=1e-6,
            err_msg=name,
        )
