from .._core import World
from ..signatures import Refusal

def check_ksm(world: World, known: int) -> Refusal | None: ...
