"""Ready-made data modules, one kind of data per file."""

from typing import TYPE_CHECKING

from hydrax.arguments import no_attribute
from hydrax.datamodules.arrays import ArrayDataModule
from hydrax.datamodules.cifar10 import CIFAR10DataModule
from hydrax.datamodules.mnist import MNISTDataModule
from hydrax.datamodules.sources import SourceDataModule
from hydrax.datamodules.tabular import TabularDataModule
from hydrax.datamodules.text import TextDataModule
from hydrax.lightning import CLASSES

__all__ = [
    "ArrayDataModule",
    "CIFAR10DataModule",
    "MNISTDataModule",
    "SourceDataModule",
    "TabularDataModule",
    "TextDataModule",
]


if not TYPE_CHECKING:  # a type checker must go on to report unknown names

    def __getattr__(name: str) -> None:
        no_attribute(__name__, name, CLASSES, __all__)
