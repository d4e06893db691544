"""The stub of the compiled module: what Python sees of it."""

from typing_extensions import disjoint_base

@disjoint_base
class CPolicy:
    """A policy of C functions: filled in by who cimports `ksmwalk.ksm._policy`, plugged in as `host.ksm.policy`."""

    keep: object
