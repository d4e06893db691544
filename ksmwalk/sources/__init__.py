"""Real input: the address space of a live process, read without disturbing it."""

from ..proc.errors import NoAddressSpace, ProcessChanged, ProcessExited
from ..proc.maps import VmaRecord
from .loading import ProcessImage, load, process
from .reading import ProcessCapture, capture

__all__ = [
    "NoAddressSpace",
    "ProcessCapture",
    "ProcessChanged",
    "ProcessExited",
    "ProcessImage",
    "VmaRecord",
    "capture",
    "load",
    "process",
]
