"""Real input: live processes, cores and images of guests, read without disturbing anything."""

from ..proc.errors import NoAddressSpace, ProcessChanged, ProcessExited
from ..proc.maps import VmaRecord
from .cores import read_core
from .guest_tables import GuestTables, guest_tables
from .guests import is_guest, read_guest
from .images import BadImage, Unkeyed
from .loading import ProcessImage, load, process
from .reading import ProcessCapture, capture

__all__ = [
    "BadImage",
    "GuestTables",
    "NoAddressSpace",
    "ProcessCapture",
    "ProcessChanged",
    "ProcessExited",
    "ProcessImage",
    "Unkeyed",
    "VmaRecord",
    "capture",
    "guest_tables",
    "is_guest",
    "load",
    "process",
    "read_core",
    "read_guest",
]
