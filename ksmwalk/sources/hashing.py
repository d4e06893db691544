"""Hashes of pages, by which equal ones are looked for; with a secret, such as other machines find as well."""

from __future__ import annotations

import hashlib
import secrets
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..layout import PAGE_SIZE
from ..signatures import U8Array, U64Array
from . import _bytes


class Hasher(Protocol):
    """A way of hashing pages.

    Attributes
    ----------
    numbers : int
        How many numbers of 64 bits a page gets.
    """

    numbers: int

    def hash(self, pages: U8Array) -> U64Array:
        """The hashes of uint8[n, 4096], as uint64[numbers, n]."""
        ...


class Folded:
    """A fast hash by random numbers of this run: that two pages agree in it proves nothing."""

    numbers = 1

    def __init__(self) -> None:
        self.seeds: NDArray[np.uint64] = np.frombuffer(secrets.token_bytes(8 * _bytes.SEEDS), np.uint64)

    def hash(self, pages: U8Array) -> U64Array:
        """The hashes of uint8[n, 4096], as uint64[1, n]."""
        out = np.empty((1, len(pages)), np.uint64)
        _bytes.hashes(pages.view(np.uint64), self.seeds, out[0])
        return out


class Keyed:
    """BLAKE2b of 128 bits, keyed by a secret."""

    numbers = 2

    def __init__(self, secret: bytes):
        self._secret = secret

    def hash(self, pages: U8Array) -> U64Array:
        """The hashes of uint8[n, 4096], as uint64[2, n]: big-endian halves of the digest."""
        view = pages.reshape(-1).data
        digest = b"".join(
            hashlib.blake2b(view[at : at + PAGE_SIZE], digest_size=16, key=self._secret).digest()
            for at in range(0, len(view), PAGE_SIZE)
        )
        return np.ascontiguousarray(np.frombuffer(digest, ">u8").astype(np.uint64).reshape(-1, 2).T)


def hasher(secret: bytes | None) -> Hasher:
    """Whichever is called for."""
    return Folded() if secret is None else Keyed(secret)
