"""Real input: the address space of a live process, read without disturbing it."""

from .errors import NoAddressSpace, ProcessChanged, ProcessExited
from .loading import ProcessImage, load, process
from .maps import VmaRecord
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
