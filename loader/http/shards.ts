/** A rank's part of some steps as one tar: its layout, and where its objects come from. */
import { BobbinError, hasCode } from '../../daemon/model/index.js'
import { objectId, objectPath } from '../../daemon/store/index.js'
import type { PackedObject } from '../batch/packing.js'
import type { Layout } from '../format/layout.js'
import { markMissing, shardLayout } from '../format/shard.js'
import { type Ahead, type LeasedStep, settled } from './ahead.js'
import type { AnswerObjects } from './answer.js'
import type { Lease } from './objects.js'
import { type OpenPlan, type RankOf, type SampleEntry, type StepContent, shardSamples } from './open-plan.js'

export interface ShardSource {
  readonly plan: OpenPlan
  readonly of: RankOf
  readonly epoch: number
  /** Empty: the contents are no steps. */
  readonly steps: readonly number[]
  readonly contents: readonly StepContent[]
}

export interface Shard {
  readonly layout: Layout
  readonly entries: readonly SampleEntry[]
  /** The content that an object belongs to. */
  contentOf(object: number): number
  /** For each content, the offset behind its last object's last byte. */
  readonly ends: readonly number[]
}

export function layOut({ plan, of, epoch, steps, contents }: ShardSource): Shard {
  const entries = contents.flatMap(({ samples }) => samples.flatMap(({ facts }) => facts.entries))
  const firsts: number[] = []
  let count = 0
  for (const { inos } of contents) {
    firsts.push(count)
    count += inos.length
  }
  const samples = contents.flatMap((content, i) => shardSamples(content, firsts[i]!))
  const contentOf = (object: number) => firsts.findLastIndex(first => object >= first)
  const isStretch = steps.length > 0
  const layout = shardLayout(
    {
      planId: plan.id,
      topHash: plan.document.topHash,
      epoch,
      ...of,
      steps,
      cursor: isStretch ? plan.cursorAt(epoch, steps[0]!) : null,
      nextCursor: isStretch ? plan.cursorAt(epoch, steps.at(-1)! + 1) : null,
      metaSuffix: plan.document.meta,
    },
    samples,
  )
  const ends = contents.map(() => 0)
  for (const segment of layout.within(0, layout.bytes)) {
    if (segment.kind === 'object') ends[contentOf(segment.object)] = segment.at + segment.length
  }
  return { layout, entries, ends, contentOf }
}

/**
 * Leases the contents one by one, as the answer comes to them, and lets each go when its last byte was sent. The
 * first one that is waited for must be here within `timeoutMs` (NOT_READY), so that a client can ask again.
 */
export class ShardObjects implements AnswerObjects {
  readonly #leased = new Map<number, LeasedStep>()
  readonly #settled = new Map<number, Lease>()
  readonly #marked = new Set<number>()
  #isFirst = true

  constructor(
    private readonly source: ShardSource,
    private readonly shard: Shard,
    private readonly options: {
      readonly ahead: Ahead
      readonly cacheDir: string
      readonly timeoutMs: number
      readonly signal: AbortSignal
      readonly onWait: (ms: number) => void
    },
  ) {}

  async prepare(objects: readonly number[]): Promise<void> {
    for (const i of new Set(objects.map(object => this.shard.contentOf(object)))) await this.#settle(i)
    for (const object of objects) this.#check(object)
  }

  get(object: number): PackedObject {
    const { entry } = this.shard.entries[object]!
    return { path: objectPath(this.options.cacheDir, objectId(entry)), size: entry.size, hash: entry.hash }
  }

  async renew(objects: readonly number[]): Promise<void> {
    for (const i of new Set(objects.map(object => this.shard.contentOf(object)))) {
      this.#leased.get(i)?.release()
      this.#settled.delete(i)
      const again = this.options.ahead.lease(this.source.plan, this.source.contents[i]!)
      this.#leased.set(i, again)
      await this.#settle(i)
    }
    for (const object of objects) this.#check(object)
  }

  sent(offset: number): void {
    for (const [i, leased] of this.#leased) {
      if (offset < this.shard.ends[i]!) break
      this.#leased.delete(i)
      leased.release()
    }
  }

  close(): void {
    for (const leased of this.#leased.values()) leased.release()
    this.#leased.clear()
  }

  async #settle(i: number): Promise<void> {
    if (this.#settled.has(i)) return
    const { plan, of, epoch, steps, contents } = this.source
    const { ahead, timeoutMs, signal } = this.options
    let leased = this.#leased.get(i)
    if (leased === undefined) {
      leased = steps.length > 0 ? ahead.take(plan, epoch, steps[i]!, of) : ahead.lease(plan, contents[i]!)
      this.#leased.set(i, leased)
      if (steps.length > 0) ahead.extend(plan, epoch, steps[i]!, of)
    }
    const started = performance.now()
    try {
      const lease = await settled(leased, {
        timeoutMs: this.#isFirst ? timeoutMs : 2 ** 30,
        signal,
        late: () => notReady(timeoutMs),
      })
      if (this.#isFirst) this.options.onWait(performance.now() - started)
      this.#isFirst = false
      this.#settled.set(i, lease)
    } catch (error) {
      if (hasCode(error, 'NOT_READY') && steps.length > 0) {
        this.#leased.delete(i)
        ahead.giveBack(plan, of, leased)
      }
      throw error
    }
  }

  /** Throws for an object that cannot be had, or puts a message in its place. */
  #check(object: number): void {
    const { entry, ino } = this.shard.entries[object]!
    const error = this.#settled.get(this.shard.contentOf(object))?.failed.get(ino)
    if (error === undefined || this.#marked.has(object)) return
    if (this.source.plan.document.onMissing === 'fail')
      throw new BobbinError(error.code, withKey(error.message, entry.key))
    this.#marked.add(object)
    markMissing(this.shard.layout, object, entry.key, error)
  }
}

export function withKey(message: string, key: string): string {
  return message.includes(key) ? message : `${key}: ${message}`
}

export function notReady(timeoutMs: number): BobbinError {
  return new BobbinError('NOT_READY', `not here after ${timeoutMs / 1000} s; it is being fetched: ask again`)
}
