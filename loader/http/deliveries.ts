/**
 * What was delivered, a JSON line an answer, in `<cache>/loader/v1/deliveries.ndjson` or where --deliveries says: with plan, epoch and steps
 * anybody can compute which entries these were. `aborted`: the client went before the answer was whole.
 * Lines are written when there is time; the last second may be lost with the process.
 */
import { appendFile, rename, stat } from 'node:fs/promises'
import type { Log } from '../../daemon/model/index.js'
import type { PackageAddress } from './objects.js'

export type Delivery = BatchDelivery | EntriesDelivery

/** Single entries, or a list of them. */
export interface EntriesDelivery extends PackageAddress {
  readonly keys: readonly string[]
  readonly as: 'entry'
  readonly outcome: 'delivered' | 'aborted'
}

export interface BatchDelivery {
  readonly plan: string
  readonly epoch: number
  readonly world: number
  readonly rank: number
  /** null: samples that were asked for by position. */
  readonly steps: readonly number[] | null
  readonly positions?: readonly number[]
  readonly samples: number
  /** Of the samples' files. */
  readonly bytes: number
  readonly as: 'tar' | 'paths'
  readonly outcome: 'delivered' | 'aborted'
}

const FLUSH_MS = 1000
const PENDING_MAX = 10_000
const FILE_BYTES_MAX = 64 * 2 ** 20

export class Deliveries {
  readonly #path: string | false
  #pending: string[] = []
  #lost = 0
  #timer: NodeJS.Timeout | undefined
  #writing: Promise<void> = Promise.resolve()

  constructor(
    /** false: nothing is written down. */
    path: string | false,
    private readonly log: Log,
  ) {
    this.#path = path
  }

  add(delivery: Delivery): void {
    if (this.#path === false) return
    if (this.#pending.length >= PENDING_MAX) {
      this.#lost++
      return
    }
    this.#pending.push(`${JSON.stringify({ time: new Date().toISOString(), ...delivery })}\n`)
    this.#timer ??= setTimeout(() => void this.flush(), FLUSH_MS)
    this.#timer.unref()
  }

  flush(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#writing = this.#writing.then(() => this.#write())
    return this.#writing
  }

  async #write(): Promise<void> {
    const [lines, lost] = [this.#pending, this.#lost]
    this.#pending = []
    this.#lost = 0
    const path = this.#path
    if (lines.length === 0 || path === false) return
    if (lost > 0) lines.push(`${JSON.stringify({ time: new Date().toISOString(), lost })}\n`)
    try {
      const size = await stat(path).then(
        stats => stats.size,
        () => 0,
      )
      if (size > FILE_BYTES_MAX) await rename(path, `${path}.1`)
      await appendFile(path, lines.join(''), { mode: 0o640 })
    } catch (error) {
      this.log.error({ error: String(error), lines: lines.length }, 'deliveries could not be written down')
    }
  }
}
