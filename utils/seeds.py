"""Seeds from names. No torch here, so that commands that only name runs start fast."""

import hashlib


def derive_seed(seed: int, *names: str | float) -> int:
    """A 64-bit signed seed derived from ``seed`` and names, the same on every machine.

    A number of numpy or torch, whose text is another, gives the seed of its Python number.
    """
    plain = tuple(each.item() if hasattr(each, "item") else each for each in (seed, *names))
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
