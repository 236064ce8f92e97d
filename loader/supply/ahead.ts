/**
 * Fetches ahead of the order. A rank that asks for a step will ask for the next ones: their leases are asked for
 * beforehand, in a window that moves with the steps it asks for, over the end of the epoch too. What is
 * leased ahead is taken over by the request that comes for it. Nobody comes when a pass stops early: such steps are let go
 * when their room is needed, those first that were in nobody's window for longest.
 */
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { LRUCache } from 'lru-cache'
import { type BobbinError, type Log, throwIfAborted } from '../../daemon/model/index.js'
import type { Lease, Priority } from './daemon-leases.js'
import type { OpenPlan, RankOf, StepContent } from './open-plan.js'
import type { Resident } from './resident.js'

/** The objects of one step for one rank: here, or on their way. */
export interface LeasedStep {
  readonly content: StepContent
  /** Settled when every object is here or has failed. */
  readonly lease: Promise<Lease>
  isReady(): boolean
  /** Settled, and not every object is here. */
  hasFailed(): boolean
  /** Lets the objects go, as soon as they are here, and says when they are needed next. */
  release(): void
}

interface Waiting {
  readonly leased: LeasedStep
  /** Of the stream, when it was in somebody's window last. */
  turn: number
}

interface Place {
  readonly plan: OpenPlan
  readonly epoch: number
  readonly step: number
  /** How many steps behind it are looked at. */
  seen: number
}

interface Stream {
  /** Leased ahead and not yet taken, in the order of their turns. */
  readonly steps: Map<string, Waiting>
  /** Steps that were handed out lately: other workers of the rank have them, so they are not fetched again. */
  readonly taken: LRUCache<string, true>
  /** Counts how often its window was moved. */
  turn: number
  /** Behind which step is still to be fetched ahead. */
  here: Place | undefined
  isExtending: boolean
  /** When it was last asked. */
  seenMs: number
}

/** A window is bounded by bytes, and for tiny samples by steps. */
const STEPS_AHEAD_MAX = 64
/** Of one rank, with a window each, and answers of as many steps. More are served, with more that is fetched in vain. */
const WORKERS_MAX = 16
const STEPS_KEPT_MAX = WORKERS_MAX * STEPS_AHEAD_MAX
const STREAMS_MAX = 1024
/** Nobody asks a stream for so long: what it holds is let go. */
const IDLE_MS = 120_000
const SWEEP_MS = 5000
/** Longer than releases take to reach the daemon, shorter than anybody waits for an error. */
const FULL_PATIENCE_MS = 3000
const FULL_RETRY_MS = 50

export class Ahead {
  readonly #streams = new Map<string, Stream>()
  readonly #timer: NodeJS.Timeout
  #bytes = 0

  constructor(
    private readonly objects: Resident,
    private readonly options: {
      /** Of all streams together: leased ahead and not yet taken. Bytes. */
      readonly bytesMax: number
      readonly log: Log
    },
  ) {
    this.#timer = setInterval(() => this.#sweep(), SWEEP_MS)
    this.#timer.unref()
  }

  get bytes(): number {
    return this.#bytes
  }

  /** What is in a step, which was worked out if it was leased ahead. */
  contentOf(plan: OpenPlan, epoch: number, step: number, of: RankOf): StepContent {
    const stream = this.#streams.get(streamKey(plan, of))
    return stream?.steps.get(stepKey(epoch, step))?.leased.content ?? plan.step(epoch, step, of)
  }

  /** The step that somebody waits for. Who takes it releases it, or gives it back. */
  take(plan: OpenPlan, content: StepContent, of: RankOf): LeasedStep {
    const stream = this.#stream(plan, of)
    const key = keyOf(content)
    stream.seenMs = Date.now()
    const waiting = stream.steps.get(key)
    // Asked for again: somebody has started anew, and will need the steps behind it once more.
    if (stream.taken.has(key)) stream.taken.clear()
    stream.taken.set(key, true)
    if (waiting === undefined) return this.lease(plan, content)
    this.#take(stream, key, waiting.leased)
    return this.#demanded(plan, waiting.leased)
  }

  /**
   * Fetches what comes behind a step; called once that step is on its way to the client. Working out a step of many
   * samples takes a while: others have their turn after each one.
   */
  extend(plan: OpenPlan, epoch: number, step: number, of: RankOf): void {
    const stream = this.#stream(plan, of)
    stream.turn++
    stream.here = { plan, epoch, step, seen: 0 }
    if (!stream.isExtending) void this.#extend(stream, of)
  }

  async #extend(stream: Stream, of: RankOf): Promise<void> {
    stream.isExtending = true
    for (;;) {
      await turn()
      const { here } = stream
      // Closed: who uses the plan next opens it, and goes on from there.
      if (here === undefined || !here.plan.isOpen) break
      try {
        if (this.#leaseNext(stream, here, of)) continue
      } catch (error) {
        // Whoever asks for that step is told, or has an index made anew.
        this.options.log.warn({ plan: here.plan.id, error: String(error) }, 'cannot fetch ahead')
      }
      if (stream.here === here) stream.here = undefined
    }
    stream.isExtending = false
  }

  /** False: it is at the end of the window, or there is no room. */
  #leaseNext(stream: Stream, here: Place, of: RankOf): boolean {
    const { plan, epoch, step } = here
    const steps = plan.stepsPerEpoch
    while (here.seen < Math.min(STEPS_AHEAD_MAX, steps)) {
      const next = step + ++here.seen
      const [inEpoch, at] = [epoch + Math.floor(next / steps), next % steps]
      const key = stepKey(inEpoch, at)
      const waiting = stream.steps.get(key)
      if (waiting !== undefined) {
        waiting.turn = stream.turn
        stream.steps.delete(key)
        stream.steps.set(key, waiting)
      }
      if (waiting !== undefined || stream.taken.has(key)) continue
      if (!this.#makeRoom(stream, epoch, 1)) return false
      const content = plan.step(inEpoch, at, of)
      if (!this.#makeRoom(stream, epoch, content.bytes)) return false
      this.#put(stream, key, this.#start(plan, content, 'ahead'))
      return true
    }
    return false
  }

  /** Not waited for any longer: who asks again finds it. */
  giveBack(plan: OpenPlan, of: RankOf, leased: LeasedStep): void {
    const stream = this.#stream(plan, of)
    const key = keyOf(leased.content)
    if (stream.steps.has(key)) {
      leased.release()
      return
    }
    stream.taken.delete(key)
    this.#put(stream, key, leased)
  }

  /** Objects that somebody waits for, without a place in an order. */
  lease(plan: OpenPlan, content: StepContent, options: { readonly isAnew?: boolean } = {}): LeasedStep {
    return this.#start(plan, content, 'demand', options)
  }

  /** How many steps from here on are here already. */
  readySteps(plan: OpenPlan, epoch: number, step: number, of: RankOf): number {
    const stream = this.#streams.get(streamKey(plan, of))
    let ready = 0
    while (stream?.steps.get(stepKey(epoch, step + ready))?.leased.isReady()) ready++
    return ready
  }

  /** Those of some steps that come before the first one that is known to fail; the first of all in any case. */
  beforeFailing(plan: OpenPlan, epoch: number, steps: readonly number[], of: RankOf): readonly number[] {
    const stream = this.#streams.get(streamKey(plan, of))
    const end = steps.findIndex((step, i) => i > 0 && stream?.steps.get(stepKey(epoch, step))?.leased.hasFailed())
    return end < 0 ? steps : steps.slice(0, end)
  }

  close(): void {
    clearInterval(this.#timer)
    for (const stream of this.#streams.values()) this.#drop(stream)
    this.#streams.clear()
  }

  /** One that was leased ahead may not have been fetched yet, or not with success: now it matters. */
  #demanded(plan: OpenPlan, waiting: LeasedStep): LeasedStep {
    const { content } = waiting
    if (!waiting.isReady()) {
      const ours = this.#start(plan, content, 'demand')
      // The objects are the same ones, and are moved to the front. The first lease goes when ours has them: before
      // that, nobody might wait for what is on its way, and it would be given up and fetched anew.
      const done = () => waiting.release()
      ours.lease.then(done, done)
      return ours
    }
    const lease = waiting.lease.then(async first => {
      if (first.failed.size === 0) return first
      const again = await this.#demand(plan, content)
      first.release()
      return again
    })
    return leasedStep(plan, content, lease)
  }

  #start(
    plan: OpenPlan,
    content: StepContent,
    priority: Priority,
    options: { readonly isAnew?: boolean } = {},
  ): LeasedStep {
    const controller = new AbortController()
    const { signal } = controller
    const lease =
      priority === 'demand'
        ? this.#demand(plan, content, { ...options, signal })
        : this.objects.lease(plan, content, { ...options, priority, signal })
    return leasedStep(plan, content, lease, controller)
  }

  /** A store that is full may be so of what is about to be let go, or of what is only leased ahead. */
  async #demand(
    plan: OpenPlan,
    content: StepContent,
    options: { readonly isAnew?: boolean; readonly signal?: AbortSignal } = {},
  ): Promise<Lease> {
    for (const deadline = Date.now() + FULL_PATIENCE_MS; ; ) {
      const lease = await this.objects.lease(plan, content, { ...options, priority: 'demand' })
      const isFull = [...lease.failed.values()].some(({ code }) => code === 'STORE_FULL')
      if (!isFull || Date.now() > deadline) return lease
      lease.release()
      for (const stream of this.#streams.values()) this.#drop(stream)
      this.objects.dropUnused()
      await sleep(FULL_RETRY_MS)
      throwIfAborted(options.signal)
    }
  }

  /** In an epoch, for so many bytes. False: all that the stream has waiting may still be asked for. */
  #makeRoom(stream: Stream, epoch: number, bytes: number): boolean {
    const isFull = () => this.#bytes + bytes > this.options.bytesMax
    for (const [key, { leased, turn }] of stream.steps) {
      const isCrowded = stream.steps.size >= STEPS_KEPT_MAX
      // Each worker moves its window in its turn, and all of them go on to another epoch.
      const isLeft = leased.content.epoch < epoch || stream.turn - turn > WORKERS_MAX
      if (!isCrowded && !(isFull() && isLeft)) break
      this.#take(stream, key, leased)
      leased.release()
    }
    return !isFull()
  }

  #put(stream: Stream, key: string, leased: LeasedStep): void {
    stream.steps.set(key, { leased, turn: stream.turn })
    this.#bytes += leased.content.bytes
    // A lease that was refused is none: who comes for the step asks anew.
    leased.lease.catch(() => this.#take(stream, key, leased))
  }

  #take(stream: Stream, key: string, leased: LeasedStep): void {
    if (stream.steps.get(key)?.leased !== leased) return
    stream.steps.delete(key)
    this.#bytes -= leased.content.bytes
  }

  #stream(plan: OpenPlan, of: RankOf): Stream {
    const key = streamKey(plan, of)
    let stream = this.#streams.get(key)
    if (stream === undefined) {
      stream = {
        steps: new Map(),
        taken: new LRUCache({ max: STEPS_KEPT_MAX }),
        turn: 0,
        here: undefined,
        isExtending: false,
        seenMs: Date.now(),
      }
      this.#streams.set(key, stream)
      if (this.#streams.size > STREAMS_MAX) this.#sweep(true)
    }
    return stream
  }

  #sweep(isCrowded = false): void {
    const oldest = [...this.#streams].sort(([, a], [, b]) => a.seenMs - b.seenMs)
    for (const [i, [key, stream]] of oldest.entries()) {
      const isIdle = Date.now() - stream.seenMs > IDLE_MS
      if (!isIdle && !(isCrowded && i < STREAMS_MAX / 8)) continue
      this.#drop(stream)
      this.#streams.delete(key)
    }
  }

  #drop(stream: Stream): void {
    stream.here = undefined
    for (const { leased } of stream.steps.values()) {
      this.#bytes -= leased.content.bytes
      leased.release()
    }
    stream.steps.clear()
  }
}

function leasedStep(
  plan: OpenPlan,
  content: StepContent,
  lease: Promise<Lease>,
  controller?: AbortController,
): LeasedStep {
  let isSettled = false
  let hasFailed = false
  lease.then(
    ({ failed }) => {
      isSettled = true
      hasFailed = failed.size > 0
    },
    () => {
      isSettled = true
    },
  )
  return {
    content,
    lease,
    isReady: () => isSettled,
    hasFailed: () => hasFailed,
    release() {
      if (!isSettled) controller?.abort()
      lease.then(
        held => held.release(content.step === null ? undefined : () => plan.distances(content)),
        () => {},
      )
    },
  }
}

/** Waits for a leased step. Throws what its lease throws, `late()` after the time, INTERRUPTED when the caller has gone. */
export async function settled(
  leased: LeasedStep,
  options: { readonly timeoutMs: number | undefined; readonly signal: AbortSignal; late(): BobbinError },
): Promise<Lease> {
  const { timeoutMs, signal, late } = options
  throwIfAborted(signal)
  let timer: NodeJS.Timeout | undefined
  let onAbort: (() => void) | undefined
  try {
    return await Promise.race([
      leased.lease,
      new Promise<never>((_, reject) => {
        if (timeoutMs !== undefined) timer = setTimeout(() => reject(late()), timeoutMs)
        onAbort = () => {
          try {
            throwIfAborted(signal)
          } catch (error) {
            reject(error)
          }
        }
        signal.addEventListener('abort', onAbort, { once: true })
      }),
    ])
  } finally {
    clearTimeout(timer)
    if (onAbort) signal.removeEventListener('abort', onAbort)
  }
}

function streamKey(plan: OpenPlan, { rank, world }: RankOf): string {
  return `${plan.id} ${world} ${rank}`
}

function keyOf({ epoch, step }: StepContent): string {
  return stepKey(epoch, step ?? 0)
}

function stepKey(epoch: number, step: number): string {
  return `${epoch} ${step}`
}
