"""Seeds from names. No torch here, so that commands that only name runs start fast."""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 64-bit signed seed derived from ``seed`` and names, the same on every machine."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
