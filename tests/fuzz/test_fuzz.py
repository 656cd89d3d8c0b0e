"""Calls of the public API drawn at random, from a fixed seed: each gives a right result or an error of Hydrax.

tests/fuzzing.py says what is drawn and what is right. A failure prints the command that makes its draw again.
"""

import fuzzing
import pytest

SEED = 20_261_130
FEW, MANY, AT_ONCE = 200, 2_000, 20


@pytest.fixture(autouse=True)
def no_files_stay_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def firsts(start, stop):
    return range(start, stop, AT_ONCE)


@pytest.mark.parametrize(
    "first", [*firsts(0, FEW), *(pytest.param(n, marks=pytest.mark.slow) for n in firsts(FEW, MANY))]
)
def test_a_call_drawn_at_random_gives_a_right_result_or_an_error_of_hydrax(first):
    outcomes = {fuzzing.run(SEED, number) for number in range(first, first + AT_ONCE)}
    assert outcomes <= {"right", "refused"}


# ---- the rule itself


@pytest.mark.parametrize("family", fuzzing.FAMILIES, ids=lambda family: family.__name__)
def test_each_family_draws_calls_of_both_outcomes(family):
    """A family that is always refused compares nothing, and one that is always right tries nothing."""
    tries = {"fuzz_module": 12, "fuzz_hook": 6, "fuzz_fit": 1, "fuzz_evaluation": 6}.get(family.__name__, 40)
    found = {fuzzing.run(SEED + 1, number, family) for number in range(tries)}
    assert found == ({"right"} if family is fuzzing.fuzz_fit else {"right", "refused"})


def broken(name):
    def draw(rng):
        if name == "raw":
            raise KeyError("a traceback of Python")
        fuzzing.check(name != "wrong", "other rows than by hand")

    return draw


@pytest.mark.parametrize(("name", "said"), [("raw", "KeyError"), ("wrong", "other rows than by hand")])
def test_a_raw_traceback_and_a_wrong_result_are_reported_with_the_command_to_draw_again(name, said):
    with pytest.raises(fuzzing.Broken, match=rf"(?s){said}.*python tests/fuzzing.py --seed 5 --only 7"):
        fuzzing.run(5, 7, broken(name))
