"""Names that do not exist, of methods, arguments, attributes and imports, are refused with what takes their place."""

import abc
import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hydrax as hx
from hydrax import callbacks, lightning
from hydrax.callbacks import LambdaCallback, ModelCheckpoint
from hydrax.datamodules import ArrayDataModule
from hydrax.train.lifecycle import check_types

ROWS = {"x": np.ones((8, 3), np.float32), "y": np.ones(8, np.float32)}
SLICES = hx.Slices.full(2, 8)


class Line(hx.HydraModule):
    def __init__(self, lr=0.1, betas=(0.9, 0.99)):
        self.save_hyperparameters()

    def configure_model(self, key):
        return nnx.Linear(3, 1, rngs=nnx.Rngs(key))

    def configure_optimizers(self):
        return optax.sgd(self.hparams.lr)

    def training_step(self, model, batch, ctx):
        return (model(batch["x"])[:, 0] - batch["y"]) ** 2


class NotAsked(ArrayDataModule):
    """A data module that fails as soon as a fit does anything with it."""

    def prepare_data(self):
        raise AssertionError("the fit has begun")


def fit(module, **trainer):
    return hx.Trainer(max_steps=1, barebones=True, **trainer).fit(module, ArrayDataModule(ROWS, slices=SLICES))


def refusal(module=None, data=None):
    """Returns the message that refuses a module or a data module, before a fit begins."""
    with pytest.raises(hx.ArgumentError) as raised:
        hx.Trainer(max_steps=1, barebones=True).fit(module or Line(), data or NotAsked(ROWS, slices=SLICES))
    return str(raised.value)


def with_method(base, name, *arguments, **methods):
    """Makes an object of a subclass with a method of this name."""
    made = type("Mine", (base,), {name: lambda self, *given: None, **methods})
    return made(*arguments) if base is not ArrayDataModule else made(ROWS, slices=SLICES)


# ---- methods


@pytest.mark.parametrize("name", sorted(lightning.MODULE_HOOKS))
def test_a_method_of_lightnings_module_is_refused_by_name(name):
    message = refusal(with_method(Line, name))
    assert f"Mine.{name}. Got " in message
    assert message.endswith(f"Fix: {lightning.MODULE_HOOKS[name]}.")


@pytest.mark.parametrize("name", sorted(lightning.DATA_HOOKS))
def test_a_method_of_lightnings_data_module_is_refused_by_name(name):
    message = refusal(data=with_method(ArrayDataModule, name))
    assert message.endswith(f"Fix: {lightning.DATA_HOOKS[name]}.")


@pytest.mark.parametrize("name", sorted(lightning.CALLBACK_HOOKS))
def test_a_hook_of_lightnings_callback_is_refused_by_name(name):
    with pytest.raises(hx.ArgumentError) as raised:
        hx.Trainer(max_steps=1, callbacks=with_method(hx.Callback, name))
    assert str(raised.value).endswith(f"Fix: {lightning.CALLBACK_HOOKS[name]}.")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("val_step", "validation_step"),
        ("validate_step", "validation_step"),
        ("valdation_step", "validation_step"),
        ("tests_step", "test_step"),
        ("pred_step", "predict_step"),
        ("set_up", "setup"),
        ("tearDown", "teardown"),
    ],
)
def test_a_misspelt_method_of_a_module_is_refused_with_the_nearest_name(name, meant):
    assert f"the nearest is {meant}" in refusal(with_method(Line, name))


def test_a_misspelt_method_is_refused_although_a_base_class_has_the_right_one():
    assert "the nearest is configure_optimizers" in refusal(with_method(Line, "configure_optimizer"))


@pytest.mark.parametrize(
    ("name", "meant"), [("val_data", "val_dataset"), ("slice", "slices"), ("prepare_datas", "prepare_data")]
)
def test_a_misspelt_method_of_a_data_module_is_refused_with_the_nearest_name(name, meant):
    assert f"the nearest is {meant}" in refusal(data=with_method(ArrayDataModule, name))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("on_train_step_end", "on_train_steps_end"), ("on_foo", "on_"), ("next_dues", "next_due")],
)
def test_a_misspelt_hook_of_a_callback_is_refused_with_the_nearest_name(name, meant):
    with pytest.raises(hx.ArgumentError, match=f"the nearest is {meant}"):
        hx.Trainer(max_steps=1, callbacks=with_method(hx.Callback, name))


def test_a_hook_of_a_callback_or_a_data_module_on_the_module_is_sent_there():
    assert refusal(with_method(Line, "on_train_steps_end")).endswith(
        "Fix: define it in a callback, and pass that to Trainer(callbacks=)."
    )
    assert refusal(with_method(Line, "train_dataset")).endswith("Fix: define it in the data module.")


HELPERS = """accuracy augment best_step compute_loss decode encode encoder evaluate generate gradient_penalty
    init_weights kl loss loss_fn make_model metrics num_classes plot_heads predict preprocess rollout sample
    shared_step step text_step train_model update_average validate weights""".split()


@pytest.mark.parametrize("name", HELPERS)
def test_a_helper_of_any_other_name_is_allowed(name):
    helper = with_method(Line, name)
    assert check_types(helper, with_method(ArrayDataModule, name))[0] is helper
    if name not in vars(hx.Callback):
        assert hx.Trainer(max_steps=1, callbacks=with_method(hx.Callback, name))


@pytest.mark.parametrize("name", ["forward", "val_step", "backward", "training_step_end"])
def test_a_helper_that_the_users_own_methods_call_may_have_any_name(name):
    source = f"def training_step(self, model, batch, ctx): return [self.{name}() for _ in range(1)]"
    names = {}
    exec(source, names)
    module = with_method(Line, name, training_step=names["training_step"])
    assert check_types(module, ArrayDataModule(ROWS, slices=SLICES))[0] is module


def test_a_method_that_also_has_a_known_name_is_allowed():
    def val_step(self, model, batch, ctx):
        return None

    module = with_method(Line, "val_step", val_step=val_step, validation_step=val_step)
    assert check_types(module, ArrayDataModule(ROWS, slices=SLICES))[0] is module


def test_an_attribute_that_switches_to_manual_optimisation_is_refused():
    class Manual(Line):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    assert "override `update" in refusal(Manual())


@pytest.mark.parametrize("stage", ["validate", "test", "predict", "predict_held_out", "plan"])
def test_the_other_stages_refuse_it_too(stage):
    heads = fit(Line()).heads
    given = {} if stage == "plan" else {"heads": heads}
    with pytest.raises(hx.ArgumentError, match="A method would never be called"):
        getattr(hx.Trainer(max_steps=1, barebones=True), stage)(
            with_method(Line, "val_step"), NotAsked(ROWS, slices=SLICES), **given
        )


# ---- parameters of methods


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("training_step", lambda self, batch, batch_idx: None),
        ("training_step", lambda self, model, batch: None),
        ("validation_step", lambda self, batch, batch_idx, dataloader_idx=0: None),
        ("predict_step", lambda self, batch: None),
        ("configure_model", lambda self: None),
        ("setup", lambda self: None),
        ("update", lambda self, head, batch: None),
    ],
)
def test_a_method_with_lightnings_parameters_is_refused_with_those_that_it_needs(name, method):
    expected = ", ".join(inspect.signature(getattr(hx.HydraModule, name)).parameters)
    message = refusal(with_method(Line, name, **{name: method}))
    assert "A method has other parameters: Mine." + name in message
    assert f"write `def {name}({expected})`" in message


@pytest.mark.parametrize("hook", ["on_train_end", "on_exception", "setup"])
def test_a_hook_that_takes_trainer_and_module_is_refused_before_the_fit(hook):
    made = type("Mine", (hx.Callback,), {hook: lambda self, trainer, pl_module: None})()
    with pytest.raises(hx.ArgumentError, match=rf"write `def {hook}\(self, event\)`; event.trainer and"):
        hx.Trainer(max_steps=1, callbacks=made)
    with pytest.raises(hx.ArgumentError, match="expected a function of an event"):
        LambdaCallback(**{hook: lambda trainer, pl_module: None})


def test_parameters_may_have_other_names_defaults_and_stars():
    class Free(Line):
        def training_step(self, net, rows, *rest, scale=1):
            return super().training_step(net, rows, *rest)

        def setup(self, stage=None):
            pass

        def configure_optimizers(self, *given):
            return optax.sgd(0.1)

    assert fit(Free()).step == 1


def test_a_module_that_is_called_as_in_lightning_is_sent_to_the_model():
    class Calls(Line):
        def training_step(self, model, batch, ctx):
            return (self(batch["x"])[:, 0] - batch["y"]) ** 2

    with pytest.raises(hx.ModuleError, match=r"Fix: call the model that the method gets, model\(\.\.\.\)"):
        fit(Calls())


def test_a_callback_that_is_added_to_the_list_later_is_checked_before_the_fit():
    trainer = hx.Trainer(max_steps=1, barebones=True)
    trainer.callbacks.append(with_method(hx.Callback, "on_validation_epoch_end"))
    with pytest.raises(hx.ArgumentError, match="use `on_validation_end`"):
        trainer.fit(Line(), ArrayDataModule(ROWS, slices=SLICES))


def test_rows_in_place_of_a_data_module_are_sent_to_one():
    with pytest.raises(hx.ArgumentError, match=r"Got dict, .*Fix: pass a data module, such as .*ArrayDataModule\("):
        hx.Trainer(max_steps=1).fit(Line(), ROWS)


@pytest.mark.parametrize("kind", [classmethod, staticmethod])
def test_a_misspelt_class_method_is_refused_too(kind):
    made = type("Mine", (Line,), {"val_step": kind(lambda *given: None)})
    assert "the nearest is validation_step" in refusal(made())


# ---- arguments


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for owner, names in lightning.ARGUMENTS.items()
        for name in names
        if hasattr(callbacks, owner) and owner not in ("WandbLogger", "MLflowLogger")
    ],
)
def test_an_argument_of_lightnings_callback_is_answered_by_name(owner, name):
    with pytest.raises(hx.ArgumentError) as raised:
        getattr(callbacks, owner)(**{name: 1})
    answer = lightning.ARGUMENTS[owner][name]
    assert (
        str(raised.value) == f"Invalid {owner} argument: {name}. Got 1, expected no such argument here. Fix: {answer}."
    )


@pytest.mark.parametrize("name", sorted(callbacks.__all__))
def test_every_callback_refuses_an_unknown_argument(name):
    with pytest.raises(hx.ArgumentError, match=f"Invalid {name} argument: nonsense. Got 1, expected a known argument"):
        getattr(callbacks, name)(nonsense=1)


def test_the_nearest_name_is_one_of_the_class_or_of_its_base():
    with pytest.raises(hx.ArgumentError, match="the nearest name is patience"):
        callbacks.EarlyStopping(patiense=3)
    with pytest.raises(hx.ArgumentError, match="the nearest name is predict"):
        ArrayDataModule(ROWS, slices=SLICES, predicted=ROWS)
    with pytest.raises(hx.ArgumentError, match="the nearest name is read_threads"):
        ArrayDataModule(ROWS, slices=SLICES, read_thread=2)


@pytest.mark.parametrize("name", sorted(lightning.ARGUMENTS["DataModule"]))
def test_an_argument_of_a_data_loader_is_answered_by_name(name):
    with pytest.raises(hx.ArgumentError) as raised:
        ArrayDataModule(ROWS, slices=SLICES, **{name: 1})
    assert str(raised.value).endswith(f"Fix: {lightning.ARGUMENTS['DataModule'][name]}.")


@pytest.mark.parametrize(
    ("method", "name"),
    [(owner, name) for owner, names in lightning.ARGUMENTS.items() if "Trainer." in owner for name in names],
)
def test_an_argument_of_a_method_of_lightnings_trainer_is_answered_by_name(method, name):
    with pytest.raises(hx.ArgumentError) as raised:
        getattr(hx.Trainer(max_steps=1), method.removeprefix("Trainer."))(**{name: 1})
    assert str(raised.value).startswith(f"Invalid {method} argument: {name}. Got 1, ")
    assert str(raised.value).endswith(f"Fix: {lightning.ARGUMENTS[method][name]}.")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hx.Trainer(3), "Trainer. Got too many positional arguments"),
        (lambda: hx.Trainer(max_steps=1).fit(Line()), "Trainer.fit. Got missing a required argument: 'datamodule'"),
        (lambda: ArrayDataModule(ROWS), "ArrayDataModule. Got missing a required argument: 'slices'"),
        (lambda: callbacks.Timer(1, 2), "Timer. Got too many positional arguments, expected Timer(duration)"),
        (lambda: callbacks.EarlyStopping("val_loss", monitor="a"), "EarlyStopping. Got multiple values for argument"),
    ],
)
def test_a_call_with_too_many_or_too_few_arguments_is_refused(call, message):
    with pytest.raises(hx.ArgumentError) as raised:
        call()
    assert message in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hx.Slices.prefix([1], rows=3), "Invalid Slices.prefix argument: rows. "),
        (lambda: SLICES.rows(heads=1), "Invalid Slices.rows argument: heads. Got 1, expected a known argument. Fix: "),
        (lambda: hx.Slices.product(lr=[1, 2]), "Slices.product. Got missing a required argument: 'slices'"),
        (lambda: hx.PerHead(value=[1, 2]), "the nearest name is values"),
        (lambda: hx.PerHead(), "PerHead. Got missing a required argument: 'values'"),
        (lambda: hx.Control(stops=[True]), "Invalid Control argument: stops. "),
        (lambda: hx.Heads.load("folder", mod=1), "Invalid Heads.load argument: mod. "),
        (lambda: hx.get_trained_models([], num_model=1), "the nearest name is num_models"),
        (
            lambda: Line.load_from_checkpoint(checkpoint_path="a"),
            "argument: checkpoint_path. Got 'a', expected no such",
        ),
        (lambda: Line.load_from_checkpoint(lr=1), "Line.load_from_checkpoint. Got missing a required argument: 'path'"),
        (
            lambda: ModelCheckpoint(save_last="link"),
            "ModelCheckpoint(save_last=...). Got 'link', expected True or False",
        ),
        (lambda: hx.export_heads("folder"), "export_heads. Got missing a required argument: 'file'"),
    ],
)
def test_the_other_public_classes_and_functions_answer_in_the_same_way(call, message):
    with pytest.raises(hx.ArgumentError) as raised:
        call()
    assert message in str(raised.value)


def test_a_type_error_inside_a_constructor_stays_what_it_is():
    class Own(hx.Callback):
        def __init__(self, size):
            self.size = size + "a"

    with pytest.raises(TypeError, match="unsupported operand") as raised:
        Own(1)
    assert not isinstance(raised.value, hx.HydraxError)


def test_subclasses_of_every_kind_keep_their_constructors():
    @dataclasses.dataclass
    class Counted(hx.Callback, abc.ABC):
        """Has a constructor that is made after the class."""

        least: int = 2

    class Kept(ArrayDataModule):
        """Has arguments of its own."""

        def __init__(self, scale: float, **settings):
            super().__init__(ROWS, slices=SLICES, **settings)
            self.scale = scale

    assert Counted(3).least == 3
    assert Kept(2.0, batch_size=3).batch_size == 3
    assert list(inspect.signature(Kept).parameters) == ["scale", "settings"]
    assert Kept.__init__.__name__ == "__init__"


@pytest.mark.parametrize("name", sorted(lightning.ARGUMENTS["HydraModule.log"]))
def test_an_argument_of_lightnings_log_is_answered_by_name(name):
    class Logs(Line):
        def training_step(self, model, batch, ctx):
            self.log("seen", 1.0, **{name: True})
            return super().training_step(model, batch, ctx)

    with pytest.raises(hx.ArgumentError) as raised:
        fit(Logs())
    assert f"Invalid Logs.log argument: {name}. " in str(raised.value)
    assert str(raised.value).endswith(f"Fix: {lightning.ARGUMENTS['HydraModule.log'][name]}.")


def test_save_hyperparameters_finds_the_module_under_any_name():
    class Own(hx.HydraModule):
        def __init__(this, lr, *, width=3):  # noqa: N805
            this.save_hyperparameters()

    assert dict(Own(0.1).hparams) == {"lr": 0.1, "width": 3}


def test_save_hyperparameters_answers_its_arguments_and_takes_one_name_to_ignore():
    class Wrong(Line):
        def __init__(self):
            self.save_hyperparameters(logger=False)

    class Ignores(Line):
        def __init__(self, net_width=3, net="a"):
            self.save_hyperparameters(ignore="net_width")

    with pytest.raises(hx.ArgumentError, match=r"Wrong\.save_hyperparameters argument: logger"):
        Wrong()
    assert dict(Ignores().hparams) == {"net": "a"}


def test_checkpoints_are_saved_by_lightnings_names():
    import datetime

    saver = ModelCheckpoint(every_n_train_steps=5, train_time_interval=datetime.timedelta(minutes=2))
    assert saver.next_due(7) == 10
    assert saver.train_time_interval.total_seconds() == 120


# ---- attributes


@pytest.mark.parametrize("name", sorted(lightning.MODULE_ATTRIBUTES))
def test_an_attribute_of_lightnings_module_is_answered_by_name(name):
    assert not hasattr(Line(), name)
    with pytest.raises(hx.MissingAttributeError) as raised:
        getattr(Line(), name)
    assert str(raised.value).startswith(f"An attribute does not exist: Line.{name}. Got ")
    assert str(raised.value).endswith(f"Fix: {lightning.MODULE_ATTRIBUTES[name]}.")


@pytest.mark.parametrize("name", sorted(lightning.TRAINER_ATTRIBUTES))
def test_an_attribute_of_lightnings_trainer_is_answered_by_name(name):
    trainer = hx.Trainer(max_steps=1)
    assert not hasattr(trainer, name)
    with pytest.raises(hx.MissingAttributeError) as raised:
        getattr(trainer, name)
    assert str(raised.value).endswith(f"Fix: {lightning.TRAINER_ATTRIBUTES[name]}.")


@pytest.mark.parametrize("name", sorted(lightning.DATA_ATTRIBUTES))
def test_an_attribute_of_lightnings_data_module_is_answered_by_name(name):
    with pytest.raises(hx.MissingAttributeError) as raised:
        getattr(ArrayDataModule(ROWS, slices=SLICES), name)
    assert str(raised.value).endswith(f"Fix: {lightning.DATA_ATTRIBUTES[name]}.")


def test_an_attribute_that_a_step_asks_for_is_answered_in_the_error_of_the_fit():
    class Prints(Line):
        def training_step(self, model, batch, ctx):
            self.print("loss")
            return super().training_step(model, batch, ctx)

    with pytest.raises(hx.MissingAttributeError, match=r"Prints\.print\. .* `jax\.debug\.print` inside one"):
        fit(Prints())


@pytest.mark.parametrize("name", sorted(lightning.CALLBACK_ATTRIBUTES))
def test_an_attribute_of_lightnings_callback_is_answered_in_the_error_of_its_hook(name):
    made = type("Mine", (hx.Callback,), {"on_train_end": lambda self, event: getattr(self, name)("a", 1)})()
    with pytest.raises(hx.CallbackError, match=r"Mine\.on_train_end at step 1\. .* Fix: log in a step, or"):
        fit(Line(), callbacks=made)


def test_other_attributes_are_missed_as_python_does():
    with pytest.raises(AttributeError) as raised:
        Line().whatever  # noqa: B018
    assert not isinstance(raised.value, hx.HydraxError)


# ---- imports


def test_a_class_of_lightning_is_answered_on_import():
    for package in ("hydrax", "hydrax.callbacks"):
        with pytest.raises(hx.MissingImportError) as raised:
            exec(f"from {package} import BackboneFinetuning")
        assert str(raised.value).endswith(f"Fix: {lightning.CLASSES['BackboneFinetuning']}.")


@pytest.mark.parametrize(
    ("statement", "fix"),
    [
        ("from hydrax import EarlyStopping", "it is in hydrax.callbacks"),
        ("from hydrax import ArrayDataModule", "it is in hydrax.datamodules"),
        ("from hydrax import Slice", "the nearest name is Slices"),
        ("from hydrax.callbacks import EarlyStoping", "the nearest name is EarlyStopping"),
        ("from hydrax.datamodules import Loader", "there are ArrayDataModule, "),
    ],
)
def test_an_import_says_where_a_name_is_or_which_is_nearest(statement, fix):
    with pytest.raises(hx.MissingImportError) as raised:
        exec(statement)
    assert f"Fix: {fix}" in str(raised.value)


def test_asking_for_a_name_does_not_raise_and_submodules_can_be_imported():
    assert not hasattr(hx, "EarlyStopping")
    assert not hasattr(callbacks, "BackboneFinetuning")
    exec("from hydrax import loss, nn, cli, trees, callbacks, datamodules")
    exec("from hydrax.callbacks import early_stopping, timer")


# ---- one value for each head


@pytest.mark.parametrize(
    "rates", [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), jnp.array([0.1, 0.2]), np.array([0.1, 0.2, 0.3])], ids=repr
)
def test_a_list_of_learning_rates_is_sent_to_per_head(rates):
    with pytest.raises(hx.ModuleError, match=r"hparams\.lr of Line\. Got .* of \d values.*lr=hx\.PerHead\("):
        fit(Line(lr=rates))


def test_an_array_that_would_give_each_column_its_own_rate_is_refused():
    class Square(Line):
        def configure_model(self, key):
            return {"w": jnp.zeros((3, 2))}

        def training_step(self, model, batch, ctx):
            return ((batch["x"] @ model["w"] - 1) ** 2).sum(-1)

    with pytest.raises(hx.ModuleError, match=r"hparams\.lr of Square"):
        fit(Square(lr=np.array([0.1, 0.2])))


def test_lists_that_an_optimiser_takes_apart_are_allowed():
    class Adam(Line):
        def configure_optimizers(self):
            return optax.adam(self.hparams.lr, *self.hparams.betas)

    assert fit(Adam(betas=[0.9, 0.99])).step == 1
