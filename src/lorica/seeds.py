"""Seeds of random draws, made of what the draws are for: no generator has a state that a resumed run would lack."""

import hashlib


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from a sequence of numbers and names, the same on every platform."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little") >> 1
