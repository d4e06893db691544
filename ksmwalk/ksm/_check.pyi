from .._core import World
from ..memory._check import Refusal

def check_ksm(world: World, known: int) -> Refusal | None: ...
