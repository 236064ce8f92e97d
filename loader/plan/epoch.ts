/**
 * One epoch of a plan: which sample is at which position, and which positions are whose. A pure function of the plan and the
 * number of samples; nothing is as long as the epoch. protocol.md, Words, has the rules.
 */
import { BobbinError } from '../../daemon/model/index.js'
import { Permutation } from './permutation.js'
import type { PlanDocument } from './plan-document.js'

export const EPOCH_MAX = 2 ** 32 - 2

export class Epoch {
  /** In the epoch. 0: the plan has fewer samples than a batch, and drops the rest. */
  readonly steps: number
  /** Of all steps, repeated samples included. */
  readonly positions: number
  readonly #order: Permutation | undefined
  #next: Permutation | undefined

  /** Throws INVALID_ARGUMENT. */
  constructor(
    private readonly document: PlanDocument,
    readonly samples: number,
    readonly epoch: number,
  ) {
    if (!Number.isInteger(epoch) || epoch < 0 || epoch > EPOCH_MAX)
      throw new BobbinError('INVALID_ARGUMENT', `not an epoch: ${epoch}`)
    const { global, tail } = document.batch
    this.steps = tail === 'drop' ? Math.floor(samples / global) : Math.ceil(samples / global)
    this.positions = tail === 'uneven' ? samples : this.steps * global
    this.#order = this.#permutation(epoch)
  }

  #permutation(epoch: number): Permutation | undefined {
    const { order, topHash } = this.document
    return order.algo === 'sequential' ? undefined : new Permutation(this.samples, { topHash, seed: order.seed, epoch })
  }

  /** Throws INVALID_ARGUMENT when the plan's batches cannot be shared so. */
  check(rank: number, world: number): void {
    const { global } = this.document.batch
    if (!Number.isInteger(world) || world < 1) throw new BobbinError('INVALID_ARGUMENT', `not a world size: ${world}`)
    if (!Number.isInteger(rank) || rank < 0 || rank >= world)
      throw new BobbinError('INVALID_ARGUMENT', `rank ${rank}: a world of ${world} has ranks 0 to ${world - 1}`)
    if (global % world !== 0)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `a global batch of ${global} cannot be shared by ${world} ranks: choose a batch that ${world} divides`,
      )
  }

  /** Positions of a rank's part of a step: first ≤ p < end. Throws INVALID_ARGUMENT. */
  slice(step: number, rank: number, world: number): { readonly first: number; readonly end: number } {
    this.check(rank, world)
    if (!Number.isInteger(step) || step < 0 || step >= this.steps)
      throw new BobbinError('INVALID_ARGUMENT', `step ${step}: an epoch of this plan has ${this.steps} steps`)
    const { global } = this.document.batch
    const start = step * global
    const size = Math.min(global, this.positions - start)
    return { first: start + Math.floor((rank * size) / world), end: start + Math.floor(((rank + 1) * size) / world) }
  }

  /** `isPad`: it repeats a sample that was there already. */
  sampleAt(position: number): { readonly sample: number; readonly isPad: boolean } {
    const isPad = position >= this.samples
    const at = position % this.samples
    return { sample: this.#order?.at(at) ?? at, isPad }
  }

  /** How many positions later the same sample comes in the next epoch; Infinity when that one drops it. */
  nextUse(position: number): number {
    const { sample } = this.sampleAt(position)
    this.#next ??= this.#permutation(this.epoch + 1)
    const next = this.#next?.positionOf(sample) ?? sample
    return next >= this.positions ? Number.POSITIVE_INFINITY : this.positions - position + next
  }
}
