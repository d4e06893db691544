"""Who tunes KSM from outside while it runs, by the rules that their authors published; for `Host.run`."""

from .memory import Memory, memory_of
from .tuners import CONTROLLERS, Ksmtuned, KubeVirt, Mom, ScanTime

__all__ = ["CONTROLLERS", "Ksmtuned", "KubeVirt", "Memory", "Mom", "ScanTime", "memory_of"]
