"""Page tables: their arrays, mappings out of them and into them, and the walk with callbacks."""

from .tables import USER_RW, PageTables

__all__ = ["USER_RW", "PageTables"]
