"""Hosts: physical memory, address spaces and their system calls, and how they are kept on disk."""

from .host import Host, TableArena
from .mm import Mm
from .tasks import ADVICE
from .traces import Player, trace_events
from .vma import Vma

__all__ = ["ADVICE", "Host", "Mm", "Player", "TableArena", "Vma", "trace_events"]
