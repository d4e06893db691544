"""Walk page tables and model Linux's samepage merging (KSM) exactly."""

__version__ = "0.1.0"
