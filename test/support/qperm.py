"""qperm-1 once more, from loader/plan/qperm.md alone: what the TypeScript of loader/plan is compared with."""

import hashlib
import struct


def mix32(h):
    """murmur3's finaliser."""
    h ^= h >> 16
    h = h * 0x85EBCA6B & 0xFFFFFFFF
    h ^= h >> 13
    h = h * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


class Permutation:
    def __init__(self, n, top_hash, seed, epoch):
        self.n = n
        self.bits = max(1, (max(n - 1, 0).bit_length() + 1) // 2)
        digest = hashlib.sha256(b"\0".join([b"qperm-1", top_hash.encode(), seed.encode(), b"%d" % epoch])).digest()
        self.keys = struct.unpack("<8I", digest)

    def at(self, position):
        x = self._forward(position)
        while x >= self.n:
            x = self._forward(x)
        return x

    def _forward(self, x):
        left, right = x >> self.bits, x & (1 << self.bits) - 1
        for key in self.keys:
            left, right = right, left ^ mix32(right ^ key) >> 32 - self.bits
        return left << self.bits | right
