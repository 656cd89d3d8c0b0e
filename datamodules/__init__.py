"""Ready data modules, one kind of data per file."""

from hydrax.datamodules.arrays import ArrayDataModule

__all__ = ["ArrayDataModule"]
