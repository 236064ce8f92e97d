/**
 * qperm-1: a permutation of 0 … n-1 computed by position, in constant memory, both ways. A Feistel network of eight
 * rounds over the smallest power of four that holds n, walked in cycles; qperm.md defines it, with vectors.
 */
import { createHash } from 'node:crypto'
import { BobbinError } from '../../daemon/model/index.js'

const ROUNDS = 8
/** Halves of 26 bits: beyond, products of doubles are not exact. */
const HALF_BITS_MAX = 26
export const PERMUTATION_MAX = 2 ** (2 * HALF_BITS_MAX)

export interface PermutationKey {
  /** 64 hex digits. */
  readonly topHash: string
  readonly seed: string
  readonly epoch: number
}

export class Permutation {
  readonly #keys: Uint32Array
  readonly #shift: number
  readonly #half: number

  /** Throws INVALID_ARGUMENT when n is no whole number from 1 to 2^52. */
  constructor(
    readonly n: number,
    { topHash, seed, epoch }: PermutationKey,
  ) {
    if (!Number.isInteger(n) || n < 1 || n > PERMUTATION_MAX)
      throw new BobbinError('INVALID_ARGUMENT', `no permutation of ${n} samples`)
    let bits = 1
    while (4 ** bits < n) bits++
    this.#half = 2 ** bits
    this.#shift = 32 - bits
    const digest = createHash('sha256').update(`qperm-1\0${topHash}\0${seed}\0${epoch}`).digest()
    this.#keys = Uint32Array.from({ length: ROUNDS }, (_, i) => digest.readUInt32LE(4 * i))
  }

  /** Which one is at this position. */
  at(position: number): number {
    let x = position
    do x = this.#forward(x)
    while (x >= this.n)
    return x
  }

  /** At which position this one is. */
  positionOf(sample: number): number {
    let x = sample
    do x = this.#backward(x)
    while (x >= this.n)
    return x
  }

  #forward(x: number): number {
    const half = this.#half
    let left = Math.floor(x / half)
    let right = x - left * half
    for (let i = 0; i < ROUNDS; i++) {
      const next = (left ^ this.#round(i, right)) >>> 0
      left = right
      right = next
    }
    return left * half + right
  }

  #backward(x: number): number {
    const half = this.#half
    let left = Math.floor(x / half)
    let right = x - left * half
    for (let i = ROUNDS - 1; i >= 0; i--) {
      const before = (right ^ this.#round(i, left)) >>> 0
      right = left
      left = before
    }
    return left * half + right
  }

  /** The upper bits of murmur3's finaliser. */
  #round(i: number, right: number): number {
    let h = right ^ this.#keys[i]!
    h = Math.imul(h ^ (h >>> 16), 0x85eb_ca6b)
    h = Math.imul(h ^ (h >>> 13), 0xc2b2_ae35)
    h ^= h >>> 16
    return h >>> this.#shift
  }
}
