/** What all routes work with, and how an answer that is more than a document is sent. */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { BobbinError, hasCode, type Log } from '../../daemon/model/index.js'
import type { Packing } from '../batch/packing.js'
import type { Ahead } from '../supply/ahead.js'
import type { Objects } from '../supply/daemon-leases.js'
import type { Deliveries } from '../supply/deliveries.js'
import type { Door } from '../supply/door.js'
import type { OpenPackages } from '../supply/open-packages.js'
import type { Plans } from '../supply/plans.js'
import type { ByHash } from './by-hash.js'
import type { Metrics } from './metrics.js'
import type { LoaderOptions } from './options.js'
import { problemAnswer, sendProblem } from './problem.js'
import type { Sessions } from './sessions.js'

export interface Context {
  readonly options: LoaderOptions
  readonly log: Log
  readonly door: Door
  readonly byHash: ByHash
  readonly plans: Plans
  readonly packages: OpenPackages
  readonly objects: Objects
  readonly ahead: Ahead
  readonly sessions: Sessions
  readonly packing: Packing
  readonly deliveries: Deliveries
  readonly metrics: Metrics
  readonly streams: Streams
}

/** Samples, and entries of lists, that are laid out in memory for all answers together: about 1.3 GB. */
const SAMPLES_MAX = 262_144
/** Of these, the entries of lists: whoever leaves lists unread keeps no batch from being sent. About 330 MB. */
const LISTED_MAX = 65_536
/** A list's body and its copy in the answer's index take as much as an entry for each kilobyte. */
const BODY_BYTES_PER_ENTRY = 1024

/** What an answer has in memory while it is under way. */
export interface AnswerSize {
  readonly samples?: number
  readonly listed?: number
}

export function sizeOfList(entries: number, bodyBytes: number): AnswerSize {
  return { listed: entries + Math.ceil(bodyBytes / BODY_BYTES_PER_ENTRY) }
}

/** Answers under way: bounded, and waited for at the end. */
export class Streams {
  #count = 0
  /** With the entries of lists. */
  #samples = 0
  #listed = 0
  #isDraining = false
  #onIdle: (() => void) | undefined

  constructor(private readonly max: number) {}

  get count(): number {
    return this.#count
  }
  get isDraining(): boolean {
    return this.#isDraining
  }

  /** Runs what makes and sends an answer, all of it: nothing is worked out for one that is not admitted. Throws BUSY. */
  async during<T>({ samples = 0, listed = 0 }: AnswerSize, run: () => Promise<T>): Promise<T> {
    this.#enter(samples, listed)
    try {
      return await run()
    } finally {
      this.#samples -= samples + listed
      this.#listed -= listed
      if (--this.#count === 0) this.#onIdle?.()
    }
  }

  #enter(samples: number, listed: number): void {
    if (this.#isDraining) throw new BobbinError('NOT_READY', 'this sidecar is about to end: ask again')
    if (this.#count >= this.max)
      throw new BobbinError(
        'BUSY',
        `${this.max} answers are under way: ask again, or start the sidecar with a larger --streams-max`,
      )
    if (listed > 0 && this.#listed + listed > LISTED_MAX && this.#listed > 0)
      throw new BobbinError('BUSY', `lists of ${this.#listed} entries are under way: ask again`)
    const added = samples + listed
    if (added > 0 && this.#samples + added > SAMPLES_MAX && this.#samples > 0)
      throw new BobbinError('BUSY', `answers with ${this.#samples} samples are under way: ask again`)
    this.#count++
    this.#samples += added
    this.#listed += listed
  }

  /** Takes no more, and waits for those under way. False: some are not done in time. */
  async drain(timeoutMs: number): Promise<boolean> {
    this.#isDraining = true
    if (this.#count === 0) return true
    let timer: NodeJS.Timeout | undefined
    try {
      return await new Promise<boolean>(resolve => {
        this.#onIdle = () => resolve(true)
        timer = setTimeout(() => resolve(false), timeoutMs)
      })
    } finally {
      clearTimeout(timer)
    }
  }
}

/**
 * Sends an answer that was admitted (`Streams.during`). Takes it out of fastify's hands (its streams cost a third of the throughput), and keeps the books. `send` gets a
 * signal that fires when the client goes.
 */
export async function stream(
  { log, metrics, door }: Context,
  request: FastifyRequest,
  reply: FastifyReply,
  send: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  reply.hijack()
  const gone = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort()
  })
  const started = performance.now()
  try {
    await send(gone.signal)
    metrics.answered(request.routeOptions.url ?? '', reply.raw.statusCode, performance.now() - started)
  } catch (error) {
    const isClients = hasCode(error, 'INTERRUPTED')
    const status = isClients ? 499 : reply.raw.headersSent ? 500 : problemAnswer(error).status
    metrics.answered(request.routeOptions.url ?? '', status, performance.now() - started)
    if (!isClients)
      log[reply.raw.headersSent ? 'error' : 'warn']({ url: request.url, error: String(error) }, 'an answer failed')
    sendProblem(reply.raw, door.shown(error))
  }
}
