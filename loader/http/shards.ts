/** A rank's part of some steps as one tar: its layout, and where its objects come from. */
import { BobbinError, hasCode } from '../../daemon/model/index.js'
import type { PackedObject } from '../batch/packing.js'
import type { Layout } from '../format/layout.js'
import { markMissing, type ShardSample, shardLayout } from '../format/shard.js'
import { type Ahead, type LeasedStep, settled } from '../supply/ahead.js'
import type { Lease } from '../supply/daemon-leases.js'
import type { OpenPlan, RankOf, SampleEntry, StepContent } from '../supply/open-plan.js'
import type { AnswerObjects, ObjectSpan } from './answer.js'

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
  const entries: SampleEntry[] = []
  const samples: ShardSample[] = []
  const firsts: number[] = []
  for (const { step, samples: placed } of contents) {
    firsts.push(entries.length)
    for (const { pos, isPad, facts } of placed) {
      samples.push({ pos, step, isPad, facts: facts.members, firstObject: entries.length })
      for (const entry of facts.entries) entries.push(entry)
    }
  }
  const contentOf = (object: number) => firsts.findLastIndex(first => object >= first)
  const isStretch = steps.length > 0
  const head = {
    planId: plan.id,
    topHash: plan.document.topHash,
    epoch,
    ...of,
    steps,
    cursor: isStretch ? plan.cursorAt(epoch, steps[0]!) : null,
    nextCursor: isStretch ? plan.cursorAt(epoch, steps.at(-1)! + 1) : null,
  }
  const layout = shardLayout(head, samples)
  const ends = contents.map(() => 0)
  let content = 0
  for (const segment of layout.within(0, layout.bytes)) {
    if (segment.kind !== 'object') continue
    while (content + 1 < firsts.length && segment.object >= firsts[content + 1]!) content++
    ends[content] = segment.at + segment.length
  }
  return { layout, entries, ends, contentOf }
}

/**
 * Leases the contents one by one, as the answer comes to them, and lets each go when its last byte was sent. The
 * first one that is waited for must be here within `timeoutMs` (NOT_READY), so that a client can ask again. Unless the
 * plan marks what is missing, no byte of a content is sent of which an object cannot be had: the first one's failure
 * can be told then, and who asks for a later one by itself is told.
 */
export class ShardObjects implements AnswerObjects {
  readonly #leased = new Map<number, LeasedStep>()
  readonly #settled = new Map<number, Lease>()
  readonly #marked = new Set<number>()
  /** The last step that came, when what is behind it is not being fetched yet. */
  #arrived: number | undefined
  #isFirst = true
  /** The answer is over: nothing more is leased for it. */
  #failure: unknown

  constructor(
    private readonly source: ShardSource,
    private readonly shard: Shard,
    private readonly options: {
      readonly ahead: Ahead
      readonly timeoutMs: number
      readonly signal: AbortSignal
      readonly onWait: (ms: number) => void
    },
  ) {}

  async prepare(objects: ObjectSpan): Promise<void> {
    const last = this.shard.contentOf(objects.last)
    for (let i = this.shard.contentOf(objects.first); i <= last; i++) await this.#settle(i)
    this.#mark(objects)
  }

  get(object: number): PackedObject {
    return this.shard.entries[object]!.packed
  }

  async renew(objects: ObjectSpan): Promise<void> {
    const last = this.shard.contentOf(objects.last)
    for (let i = this.shard.contentOf(objects.first); i <= last; i++) {
      this.#leased.get(i)?.release()
      this.#settled.delete(i)
      this.#leased.set(i, this.options.ahead.lease(this.source.plan, this.source.contents[i]!, { isAnew: true }))
      await this.#settle(i)
    }
    this.#mark(objects)
  }

  sent(offset: number): void {
    const { plan, of, epoch } = this.source
    if (this.#arrived !== undefined) this.options.ahead.extend(plan, epoch, this.#arrived, of)
    this.#arrived = undefined
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
    if (this.#failure !== undefined) throw this.#failure
    if (this.#settled.has(i)) return
    const { plan, of, steps, contents } = this.source
    const { ahead, timeoutMs, signal, onWait } = this.options
    let leased = this.#leased.get(i)
    if (leased === undefined) {
      leased = steps.length > 0 ? ahead.take(plan, contents[i]!, of) : ahead.lease(plan, contents[i]!)
      this.#leased.set(i, leased)
    }
    const started = performance.now()
    try {
      const lease = await settled(leased, {
        // Behind the first byte a client cannot be told to ask again; the daemon gives up what makes no progress.
        timeoutMs: this.#isFirst ? timeoutMs : undefined,
        signal,
        late: () => notReady(timeoutMs),
      })
      if (this.#isFirst) onWait(performance.now() - started)
      this.#isFirst = false
      if (plan.document.onMissing === 'fail') refuseFailed(contents[i]!, lease)
      this.#settled.set(i, lease)
      this.#arrived = steps[i]
    } catch (error) {
      this.#failure = error
      // Who asks again finds it, and an answer that would come to one that fails ends before it.
      const isKept = hasCode(error, 'NOT_READY') || leased.hasFailed()
      if (isKept && steps.length > 0 && this.#leased.delete(i)) ahead.giveBack(plan, of, leased)
      throw error
    }
  }

  /** Puts messages in the places of what cannot be had. */
  #mark({ first, last }: ObjectSpan): void {
    for (let i = this.shard.contentOf(first); i <= this.shard.contentOf(last); i++) {
      const { failed } = this.#settled.get(i)!
      if (failed.size === 0) continue
      for (let object = first; object <= last; object++) {
        const { entry, ino } = this.shard.entries[object]!
        const error = failed.get(ino)
        if (error === undefined || this.#marked.has(object) || this.shard.contentOf(object) !== i) continue
        this.#marked.add(object)
        markMissing(this.shard.layout, object, entry.key, error)
      }
    }
  }
}

/** Throws what the first object that cannot be had has failed with. */
export function refuseFailed({ samples }: StepContent, { failed }: Lease): void {
  if (failed.size === 0) return
  for (const { facts } of samples) {
    for (const { ino, entry } of facts.entries) {
      const error = failed.get(ino)
      if (error !== undefined) throw new BobbinError(error.code, withKey(error.message, entry.key))
    }
  }
}

export function withKey(message: string, key: string): string {
  return message.includes(key) ? message : `${key}: ${message}`
}

export function notReady(timeoutMs: number): BobbinError {
  return new BobbinError('NOT_READY', `not here after ${timeoutMs / 1000} s; it is being fetched: ask again`)
}
