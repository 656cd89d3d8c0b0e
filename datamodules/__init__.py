"""Ready-made data modules, one kind of data per file."""

from hydrax.datamodules.arrays import ArrayDataModule
from hydrax.datamodules.cifar10 import CIFAR10DataModule
from hydrax.datamodules.mnist import MNISTDataModule
from hydrax.datamodules.sources import SourceDataModule
from hydrax.datamodules.tabular import TabularDataModule
from hydrax.datamodules.text import TextDataModule

__all__ = [
    "ArrayDataModule",
    "CIFAR10DataModule",
    "MNISTDataModule",
    "SourceDataModule",
    "TabularDataModule",
    "TextDataModule",
]
