"""What every test shares: Hydrax before JAX, no silent rank promotion, GPU tests only where there is a GPU."""

import hydrax  # noqa: F401  # isort: skip  # first: its guard must stand before JAX starts its backend

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(pytest.mark.skip(reason="needs a GPU: JAX finds none here"))
