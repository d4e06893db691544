"""Real input: the address space of a live process, read without disturbing it."""

from .capture import ProcessCapture, capture
from .errors import NoAddressSpace, ProcessChanged, ProcessExited
from .maps import VmaRecord

__all__ = ["NoAddressSpace", "ProcessCapture", "ProcessChanged", "ProcessExited", "VmaRecord", "capture"]
