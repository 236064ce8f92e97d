/**
 * What was delivered, a JSON line an answer, in `<cache>/loader/v1/deliveries.ndjson` or where --deliveries says: with plan, epoch and steps
 * anybody can compute which entries these were. `aborted`: the client went before the answer was whole.
 * Lines are written when there is time; the last second may be lost with the process.
 */
import { appendFile, rename, stat } from 'node:fs/promises'
import type { Log } from '../../daemon/model/index.js'
import type { PackageAddress } from './daemon-leases.js'

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
/** Of the cache's own file, which nobody ends: the one before it is kept, too. A file of somebody's own has no bound. */
export const OWN_FILE_BYTES_MAX = 64 * 2 ** 20

export interface DeliveriesFile {
  readonly path: string
  readonly bytesMax: number
}

export class Deliveries {
  #pending: string[] = []
  /** Not written down, which the file does not tell of yet. */
  #lost = 0
  #timer: NodeJS.Timeout | undefined
  #writing: Promise<void> = Promise.resolve()

  constructor(
    /** false: nothing is written down. */
    private readonly file: DeliveriesFile | false,
    private readonly log: Log,
  ) {}

  add(delivery: Delivery): void {
    if (this.file === false) return
    if (this.#pending.length >= PENDING_MAX) {
      this.#lost++
      return
    }
    this.#pending.push(lineOf(delivery))
    this.#timer ??= setTimeout(() => void this.flush(), FLUSH_MS)
    this.#timer.unref()
  }

  /** False: some are not written down, and the file does not say so. */
  async flush(): Promise<boolean> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#writing = this.#writing.then(() => this.#write())
    await this.#writing
    return this.#lost === 0
  }

  async #write(): Promise<void> {
    const { file } = this
    const [lines, lost] = [this.#pending, this.#lost]
    if (file === false || lines.length + lost === 0) return
    this.#pending = []
    this.#lost = 0
    const { path, bytesMax } = file
    // A line of its own, whatever a disk that was full has left of the one before.
    const text = lost === 0 ? lines.join('') : `\n${[...lines, lineOf({ lost })].join('')}`
    try {
      const size = await stat(path).then(
        stats => stats.size,
        () => 0,
      )
      if (size > bytesMax) await rename(path, `${path}.1`)
      await appendFile(path, text, { mode: 0o640 })
    } catch (error) {
      this.#lost += lost + lines.length
      this.log.error({ error: String(error), lines: lines.length }, 'deliveries could not be written down')
    }
  }
}

function lineOf(facts: Delivery | { readonly lost: number }): string {
  return `${JSON.stringify({ time: new Date().toISOString(), ...facts })}\n`
}
