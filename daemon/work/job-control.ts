/**
 * A few bytes that a job and whoever started it share, over threads: "stop", and how far it is.
 *
 * A worker's task cannot be aborted from outside without killing its thread, so the job looks at
 * the flag between two pieces; a job that waits for the network is woken by its signal, for which
 * one timer a thread looks at the flags of all jobs under way.
 */
import { BobbinError } from '../model/index.js'

/** A job that waits is woken this long after it was cancelled, at most. */
const LOOK_MS = 50

const watched = new Set<JobControl>()
let timer: NodeJS.Timeout | undefined

export class JobControl {
  readonly #flag: Int32Array
  readonly #bytes: BigInt64Array
  #controller: AbortController | undefined

  /** The buffer crosses threads, the object does not. */
  constructor(readonly buffer: SharedArrayBuffer = new SharedArrayBuffer(16)) {
    this.#flag = new Int32Array(buffer, 0, 1)
    this.#bytes = new BigInt64Array(buffer, 8, 1)
  }

  cancel(): void {
    Atomics.store(this.#flag, 0, 1)
    this.#controller?.abort()
  }

  get isCancelled(): boolean {
    return Atomics.load(this.#flag, 0) !== 0
  }

  throwIfCancelled(): void {
    if (this.isCancelled) throw new BobbinError('INTERRUPTED', 'interrupted')
  }

  addBytes(count: number): void {
    Atomics.add(this.#bytes, 0, BigInt(count))
  }

  /** Fetched or hashed so far. */
  get bytes(): number {
    return Number(Atomics.load(this.#bytes, 0))
  }

  /** Fires in this thread when the job is cancelled in any; whoever asks for it calls `unwatch` at the end. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      watched.add(this)
      timer ??= setInterval(look, LOOK_MS).unref()
    }
    return this.#controller.signal
  }

  unwatch(): void {
    if (!watched.delete(this) || watched.size > 0) return
    clearInterval(timer)
    timer = undefined
  }
}

function look(): void {
  for (const control of watched) if (control.isCancelled) control.cancel()
}
