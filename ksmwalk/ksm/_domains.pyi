"""The stub of the compiled module: what Python calls of it."""

from .._core import World

def py_set_domain(world: World, mm: int, domain: int) -> int: ...
