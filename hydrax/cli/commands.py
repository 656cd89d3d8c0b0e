"""The commands that run a module from a config file, as LightningCLI does: fit, validate, test, predict, plan."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from hydrax.cli.config_errors import in_one_line, refuse_repeats
from hydrax.data import DataModule
from hydrax.errors import ArgumentError, HydraxError
from hydrax.files import warn_if_unwritable, write_text
from hydrax.loop import Callback, Event
from hydrax.results import SUFFIXES, check_suffix, export
from hydrax.slices import Slices
from hydrax.step import PerHead
from hydrax.train import HydraModule, Trainer
from hydrax.trees import named_leaves

COMMANDS = {
    "fit": "train all heads",
    "validate": "validate the heads of a checkpoint",
    "test": "test the heads of a checkpoint",
    "predict": "write the predictions of a checkpoint's heads to a file",
    "plan": "show the plan and the memory of a fit, without training",
}
_INTERRUPTED = 128 + signal.SIGINT


def run(command: str, argv: Sequence[str]) -> int:
    """Runs a command of `COMMANDS`.

    Args:
      command: name of the command.
      argv: the arguments after it.

    Returns:
      The exit status: 0; 2 for unusable arguments or an unusable config, which one line on stderr explains; 130 after
      Ctrl-C.

    Raises:
      HydraxError: the run cannot be started, or failed.
      SystemExit: after --help or --print_config (status 0), and after SIGTERM (143).
    """
    jsonargparse = _jsonargparse()
    _open_to_configs(jsonargparse)
    _refuse_repeats(jsonargparse)
    here = os.getcwd()
    if here not in sys.path:  # the user's modules are beside the config; an installed command does not search there
        sys.path.insert(0, here)
    parser = _parser(jsonargparse, command)
    try:
        config = parser.parse_args(list(argv))
        made = parser.instantiate(config)
    except jsonargparse.ArgumentError as error:
        return _refuse(command, error)
    except ValueError as error:  # raised by the user's class, by Hydrax, or by jsonargparse itself
        root = _root(error)
        if isinstance(root, HydraxError) or not _is_of(jsonargparse, root):
            raise root from None
        return _refuse(command, error)
    if command == "fit":
        config.ckpt_path = None  # the saved config must repeat the run, not resume it
        made.trainer.callbacks.append(_ConfigSaver(parser.dump(config, skip_unset=False)))
    return _RUNS[command](made)


def _fit(made: Any) -> int:
    try:
        print(made.trainer.fit(made.model, made.data, ckpt_path=made.ckpt_path))
    except KeyboardInterrupt:
        with contextlib.suppress(ArgumentError):  # of a fit that did not end in order
            print(made.trainer.result)
            return _INTERRUPTED
        raise
    return 0


def _validate(made: Any) -> int:
    made.trainer.validate(made.model, made.data, ckpt_path=made.ckpt_path or "last")
    return 0


def _test(made: Any) -> int:
    made.trainer.test(made.model, made.data, ckpt_path=made.ckpt_path or "last")
    return 0


def _predict(made: Any) -> int:
    file = check_suffix(Path(made.to))
    found = made.trainer.predict(made.model, made.data, ckpt_path=made.ckpt_path or "last", reduce=made.reduce)
    print(export({name or "predictions": leaf for name, leaf in named_leaves(found).items()}, file))
    return 0


def _plan(made: Any) -> int:
    print(made.trainer.plan(made.model, made.data, ckpt_path=made.ckpt_path))
    return 0


_RUNS = {"fit": _fit, "validate": _validate, "test": _test, "predict": _predict, "plan": _plan}


class _ConfigSaver(Callback):
    """Saves the config of a fit, with all defaults, in the folder of the run."""

    def __init__(self, text: str) -> None:
        self._text = text

    def on_fit_start(self, event: Event) -> None:
        folder = event.trainer.log_dir
        if folder is None:
            return
        path = folder / "config.yaml"
        with warn_if_unwritable("The config of the run", path, "pass another default_root_dir to Trainer"):
            write_text(path, self._text)


def _jsonargparse() -> Any:
    try:
        import jsonargparse
    except ImportError as error:
        raise ArgumentError(
            "Missing package: jsonargparse, which reads configs. Got none, expected it to be installed. Fix: "
            "pip install 'hydrax-heads[cli]'."
        ) from error
    return jsonargparse


def _open_to_configs(jsonargparse: Any) -> None:
    """Lets a config make `PerHead` and `Slices` by `class_path`.

    jsonargparse checks values against annotations: a list is not an `ArrayLike` to it, and a method that returns `Self`
    does not return `Slices`. Both classes check their arguments themselves, so their annotations are widened. For a
    dataclass it accepts a `class_path`, such as that of a constructor, only if it is told to.
    """
    jsonargparse.set_parsing_settings(subclasses_enabled=[Slices])
    PerHead.__init__.__annotations__["values"] = Any
    for method in vars(Slices).values():
        hints = method.__func__.__annotations__ if isinstance(method, classmethod) else {}
        if hints.get("return") is Self:
            hints.update({**dict.fromkeys(hints, Any), "return": Slices})


@functools.cache  # once a process: the loader belongs to all parsers
def _refuse_repeats(jsonargparse: Any) -> None:
    """Makes configs with a key given twice an error."""
    import yaml

    load = jsonargparse.get_loader("yaml")

    def strict(text: str) -> Any:
        refuse_repeats(text)
        return load(text)

    jsonargparse.set_loader("yaml", strict, exceptions=(yaml.YAMLError,))


def _parser(jsonargparse: Any, command: str) -> Any:
    from hydrax import callbacks, datamodules  # noqa: F401  # lets a config name their classes without a module

    titles = {"model": "Module", "data": "Data module", "trainer": "Trainer"}

    class Parser(jsonargparse.ArgumentParser):  # type: ignore[misc]
        """Names a group of arguments by what it is of; by default it shows the first line of the class's docstring."""

        def add_argument_group(self, title: str, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
            title = titles.get(name or "", f"Arguments of {name}" if name else title)
            return super().add_argument_group(title, *args, name=name, **kwargs)

    parser = Parser(
        f"hydrax {command}",
        usage=f"hydrax {command} --config FILE [--trainer.ARGUMENT VALUE] [--model.ARGUMENT VALUE] ...",
        description=f"{COMMANDS[command].capitalize()}. Options on the command line override the config.",
        exit_on_error=False,
        allow_abbrev=False,  # --trainer.max_step would be taken for max_steps
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with model, data and trainer; a second one overrides the first"
    )
    parser.add_subclass_arguments(HydraModule, "model", required=True, help="class of the module, or its init_args")
    parser.add_subclass_arguments(DataModule, "data", required=True, help="class of the data module, or its init_args")
    parser.add_class_arguments(Trainer, "trainer")
    where = "checkpoint to read: a folder, last or best (default: last)"
    if command in ("fit", "plan"):
        where = "checkpoint to resume from: a folder, last, or auto (last if there is one)"
    parser.add_argument("--ckpt_path", type=str | None, default=None, help=where)
    if command == "predict":
        parser.add_argument(
            "--to", type=str, default="predictions.npz", help=f"file to write, ending in {' or '.join(SUFFIXES)}"
        )
        parser.add_argument("--reduce", type=str | None, default=None, help="mean, to write the mean over the heads")
    return parser


def _refuse(command: str, error: Exception) -> int:
    print(f"hydrax {command}: {in_one_line(str(error))}", file=sys.stderr)
    return 2


def _root(error: BaseException) -> BaseException:
    """Returns the first error of a chain."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _is_of(package: Any, error: BaseException) -> bool:
    """Tells whether an error was raised by a package's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).parent == Path(package.__file__).parent
