"""Page tables: their arrays, mappings out of them and into them, and the walk with callbacks."""

from .columns import Columns
from .tables import USER_RW, PageTables

__all__ = ["USER_RW", "Columns", "PageTables"]
