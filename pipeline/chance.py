"""Chance that is a pure function of what it is for: no order of calls, no number of ranks changes it."""

import hashlib

import torch


def generator(seed: int, purpose: str, position: int) -> torch.Generator:
    """On the CPU, so that a seed means the same on every device."""
    mixed = hashlib.sha256(f"{purpose}/{seed}/{position}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(mixed, "big", signed=True))
