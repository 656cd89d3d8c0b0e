"""The same training in PyTorch: one model after the other, and all at once with torch.func.

- one by one: a model and an optimiser for each head, trained in turn; convolutions in channels_last.
- vmap: `torch.func.vmap` of the gradient over stacked parameters, which one optimiser updates in place.

Both try PyTorch's optimiser in two implementations, and the faster one counts (turns.best_of): the one by one form its
default and `fused=True`, the vmap form `foreach=True` and `fused=True`. PyTorch's default number of threads, and one
thread, which tiny models are often faster with. No torch.compile, which needs a C++ compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from peers import torch_models
from peers.cases import WEIGHT_DECAY, Case
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEFAULT_THREADS = torch.get_num_threads()


class TorchForm:
    """The common part of both forms: data, index batches and counting steps. A call is one step."""

    call_steps = steps_per_unit = 1

    def __init__(self, case: Case, start: Any, how: dict[str, Any]) -> None:
        self.case, self.note, self.step = case, "", 0
        self.how = {name: value for name, value in how.items() if name != "threads"}
        self._threads = how.get("threads", DEFAULT_THREADS)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows = case.rows()
        put = lambda a: torch.tensor(a, device=self.device)  # noqa: E731
        self.length, self.gap_at, self.gap = (put(getattr(rows, n))[:, None] for n in ("length", "gap_at", "gap"))
        self.data = {name: put(column) for name, column in case.make_data(case.num_rows).items()}
        self.start = {name: put(value) for name, value in torch_models.as_torch(start).items()}
        self.slots = torch.arange(case.batch_size, device=self.device)
        self._first = self._last = None

    def advance(self, num_steps: int) -> None:
        torch.set_num_threads(self._threads)
        for _ in range(num_steps):
            places = (self.step * self.case.batch_size + self.slots) % self.length
            self._last = self._train(places + torch.where(places >= self.gap_at, self.gap, 0))
            self._first = self._last if self._first is None else self._first
            self.step += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def losses(self) -> tuple[float, float]:
        return float(self._first.mean()), float(self._last.mean())

    def close(self) -> None:
        vars(self).clear()

    def _train(self, rows: torch.Tensor) -> torch.Tensor:
        """Makes one step of all heads on the rows [H, B]. Returns their losses, [H]."""
        raise NotImplementedError

    def _model(self) -> torch.nn.Module:
        """Makes a model without values, which are then set to the initial values."""
        name, args = self.case.torch_model
        with torch.device("meta"):
            return getattr(torch_models, name)(*args)

    def _optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        if self.case.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.case.learning_rate, **self.how)
        return torch.optim.AdamW(parameters, lr=self.case.learning_rate, weight_decay=WEIGHT_DECAY, **self.how)

    def _loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if "tokens" not in batch:
            return F.cross_entropy(model(batch["x"]), batch["y"].long())
        tokens = batch["tokens"].long()
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


class OneByOne(TorchForm):
    def __init__(self, case: Case, start: Any, how: dict[str, Any]) -> None:
        super().__init__(case, start, how)
        self._models, self._optimizers = [], []
        for head in range(case.num_heads):
            model = self._model()
            model.load_state_dict({name: value[head].clone() for name, value in self.start.items()}, assign=True)
            model.requires_grad_().to(memory_format=torch.channels_last)
            self._models.append(model)
            self._optimizers.append(self._optimizer(list(model.parameters())))
        self.start = {}

    def _train(self, rows: torch.Tensor) -> torch.Tensor:
        losses = []
        for model, optimizer, own in zip(self._models, self._optimizers, rows, strict=True):
            loss = self._loss(model, {name: column[own] for name, column in self.data.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)


class FuncVmap(TorchForm):
    def __init__(self, case: Case, start: Any, how: dict[str, Any]) -> None:
        super().__init__(case, start, how)
        empty = self._model()
        self._params = {name: value.clone() for name, value in self.start.items()}
        self._updater = self._optimizer(list(self._params.values()))
        one = lambda params, batch: self._loss(lambda x: functional_call(empty, params, (x,)), batch)  # noqa: E731
        self._gradients = torch.func.vmap(grad_and_value(one))
        self.start = {}

    def _train(self, rows: torch.Tensor) -> torch.Tensor:
        batch = {name: column[rows] for name, column in self.data.items()}
        # The fused attention does not support vmap.
        with sdpa_kernel(SDPBackend.MATH):
            gradients, losses = self._gradients(self._params, batch)
        for name, param in self._params.items():
            param.grad = gradients[name]
        self._updater.step()
        return losses


FUSED = {"fused": True}
ONE_BY_ONE_WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "fused": FUSED,
    "fused, 1 thread": FUSED | {"threads": 1},
}
VMAP_WAYS: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "fused": FUSED,
    "fused, 1 thread": FUSED | {"threads": 1},
}
