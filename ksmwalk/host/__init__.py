"""Hosts: physical memory, address spaces and their system calls, and how they are kept on disk."""

from .host import Host, TableArena
from .mm import ADVICE, Mm
from .vma import Vma

__all__ = ["ADVICE", "Host", "Mm", "TableArena", "Vma"]
