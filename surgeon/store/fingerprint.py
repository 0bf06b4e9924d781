"""Which checkpoint this is, at a glance: a hash of every tensor's name, dtype, shape and a few of its bytes.

It tells fine-tunes of one base apart (their headers are equal) without reading them.
"""

from __future__ import annotations

from blake3 import blake3

from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files

_SAMPLE = 64


def fingerprint(checkpoint: Checkpoint) -> str:
    """blake3 (hex) over all tensors by name, with the 64 bytes at the start and in the middle of each."""
    hasher, files = blake3(), Files()
    try:
        for name, stored in sorted(checkpoint.tensors.items()):
            hasher.update(f"\0{name}\0{stored.spec}\0".encode())
            size = min(_SAMPLE, stored.spec.nbytes)
            for start in (0, (stored.spec.nbytes - size) // 2):
                buffer = bytearray(size)
                files.fill(stored, start, memoryview(buffer))
                hasher.update(buffer)
    finally:
        files.close()
    return hasher.hexdigest()
