"""The errors Hydrax raises on purpose: each says what is wrong, where, what it got and expected, and how to fix it."""


class HydraxError(Exception):
    """Parent of every error that Hydrax raises on purpose."""


class ArgumentError(HydraxError, ValueError):
    """An argument of a public function or class has a value it cannot have."""


class MissingAttributeError(HydraxError, AttributeError):
    """An attribute does not exist; the message names what takes its place."""


class MissingImportError(HydraxError, ImportError):
    """A name to import does not exist; the message names what takes its place."""


class SliceError(HydraxError, ValueError):
    """A slice is invalid: it has no rows, or it has rows outside the dataset."""


class DataError(HydraxError, ValueError):
    """A dataset cannot be trained on as it is: its columns, dtypes or lengths do not fit."""


class ModuleError(HydraxError, TypeError):
    """A method of a HydraModule breaks its contract: what it returns, logs, or does to the module."""


class CallbackError(HydraxError, RuntimeError):
    """A callback's hook raised; the message names class, hook and step, the cause is attached."""


class CheckpointError(HydraxError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint lacks files, or they hold other bytes than were saved."""


class NonFiniteError(HydraxError, ArithmeticError):
    """Heads became NaN or infinite: with `on_nonfinite="raise"` one of them, else all."""


class AnomalyError(HydraxError, ArithmeticError):
    """With `detect_anomaly=True`: a step computes NaN, divides by zero, or uses an index outside its array."""


class MemoryLimitError(HydraxError, MemoryError):
    """A run does not fit into the memory of its devices under any plan."""
