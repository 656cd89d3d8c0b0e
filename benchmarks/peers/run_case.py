"""One case in one process: `python -m peers.run_case '{"letter": "a", ...}'` prints its results as JSON, last line.

engine.py starts it, with the devices and flags that the case needs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import hydrax  # noqa: F401  # isort: skip  # first: its guard must stand before JAX starts its backend

import jax
from peers import by_hand, convolution, turns
from peers.cases import Case, folds, make_cases
from peers.hydrax_fit import HydraxFit
from peers.turns import Missing, Player

Maker = Callable[[], turns.Opponent]


def makers(name: str, case: Case, start: Any) -> Mapping[str, Maker]:
    """Returns the variants of an opponent; the fastest counts.

    Raises:
      Missing: a library is not installed.
    """
    if name.endswith("shared"):  # its batches have few live slots if slices are small, as in the tiny form
        case = dataclasses.replace(case, make_rows=folds)
    if name == "hydrax shared":
        return {"": lambda: HydraxFit(case, sampling="shared")}
    if name == "hydrax few":
        few = dataclasses.replace(case, num_heads=case.small_heads)
        return {"": lambda: HydraxFit(few)}
    if name.startswith("torch"):
        return torch_makers(name, case, start)
    if name == "sklearn":
        return sklearn_makers(case, start)
    make_step = by_hand.make_shared_step if name.endswith("shared") else by_hand.make_own_step
    if name.startswith("vmap"):
        return {"": lambda: by_hand.Vmap(case, start, make_step)}
    if name == "one by one":
        return {"": lambda: by_hand.OneByOne(case, start)}
    row_loss = convolution.row_loss if case.torch_model[0] == "Cnn" else None
    widths = {chunk_width for chunk_width in case.chunks if chunk_width <= case.num_heads}
    if jax.default_backend() != "cpu":  # wide chunks are faster on a GPU
        widths = {case.num_heads, -(-case.num_heads // 4), -(-case.num_heads // 16)}
    form = functools.partial(by_hand.Chunks, case, start, make_step=make_step, row_loss=row_loss)
    return {f"C = {width}": functools.partial(form, width) for width in sorted(widths)}


def torch_makers(name: str, case: Case, start: Any) -> Mapping[str, Maker]:
    try:
        from peers import torch_forms
    except ImportError as error:
        raise Missing("not installed") from error
    form, ways = {
        "torch vmap": (torch_forms.FuncVmap, torch_forms.VMAP_WAYS),
        "torch one by one": (torch_forms.OneByOne, torch_forms.ONE_BY_ONE_WAYS),
    }[name]
    return {way: functools.partial(form, case, start, how) for way, how in ways.items()}


def sklearn_makers(case: Case, start: Any) -> Mapping[str, Maker]:
    try:
        from peers.sklearn_form import SklearnJoblib
    except ImportError as error:
        raise Missing("not installed") from error
    return {"": lambda: SklearnJoblib(case, start)}


def with_epochs(case: Case, player: Player, name: str) -> Player:
    """Returns the steps of the timed unit; the epochs of all opponents are as long as Hydrax's."""
    kind = "shared" if name.endswith("shared") else "own"
    player.opponent.steps_per_unit = (case.steps_per_unit or {}).get(kind, 1)
    return player


def run(letter: str, turn_count: int, tiny: bool, least_secs: float, only: list[str] | None = None) -> dict[str, Any]:
    """Warms up and trains turn by turn; `only` selects some opponents of the case."""
    case = make_cases()[letter]
    case = case.tiny() if tiny else case
    names = [name for name in case.opponents if only is None or name in only]
    warm_steps = case.warm_calls * case.steps_per_call
    players = [Player("hydrax", lambda: HydraxFit(case), warm_steps, exact=tiny)]
    start, missing = players[0].opponent.start, {}
    for name in (*(["hydrax few"] if case.small_heads else []), *names):
        try:
            forms = makers(name, case, start)
        except Missing as reason:
            missing[name] = str(reason)
            continue
        players.append(with_epochs(case, turns.best_of(name, forms, warm_steps, exact=tiny), name))
        print(f"{letter}: {name} is warm", file=sys.stderr, flush=True)
    for player in players:
        player.plan(least_secs, 1 if tiny else 4)
    turns.take_turns(players, turn_count)
    results = [player.result() for player in players]
    found = {
        "letter": letter,
        "title": case.title,
        "heads": case.num_heads,
        "few": case.small_heads,
        "steps_per_call": case.steps_per_call,
        "batch_size": case.batch_size,
        "unit": "epoch" if case.steps_per_unit else "step",
        "steps_per_unit": (case.steps_per_unit or {}).get("own", 1),
        "counted": list(case.counted),
        "backend": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "results": results,
        "missing": missing,
        "wrong": turns.disagreements(results, 1e-3 if tiny else None),
    }
    for player in players:
        player.opponent.close()
    return found


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
