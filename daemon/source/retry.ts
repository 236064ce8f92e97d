/**
 * The one layer that retries the network (the SDK's own retries are off).
 *
 * What is worth another try says `failure-class.ts`. It is tried until the progress clock ends: a server that is away for less than
 * the I/O time-out costs its readers time, and nothing else. The waits between tries double, with jitter, and are
 * at least what the server asks for in `Retry-After`.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { BobbinError, formatDuration, throwIfAborted } from '../model/index.js'
import { reasonOf } from './errors.js'
import { failureClass, isClockSkew, retryAfterMs, SilenceError } from './failure-class.js'
import type { Progress } from './progress.js'
import { WaitNotice } from './waiting.js'

const FIRST_WAIT_MS = 100
/** S3 asks throttled clients to slow down for seconds, not minutes. */
const WAIT_MS_MAX = 5_000
/** A part of the I/O time-out, too, so that a server that comes back late in it is noticed. */
const WAIT_PART_MAX = 1 / 8
/** What is left of the I/O time-out for the last try. */
const LAST_TRY_PART = 1 / 10
const LAST_TRY_MS_MAX = 1_000

/** The waits between tries of one thing. */
export class Backoff {
  #tries = 0

  constructor(private readonly progress: Progress) {}

  get tries(): number {
    return this.#tries
  }

  /** It went on. */
  reset(): void {
    this.#tries = 0
  }

  /** Counts a try that failed, and waits until the next one; `false`: there is no time for one. Returns early when the signal fires. */
  async wait(failure: unknown, signal: AbortSignal | undefined): Promise<boolean> {
    this.#tries++
    const { ioTimeoutMs } = this.progress
    const timeLeftMs = this.progress.remainingMs() - Math.min(LAST_TRY_MS_MAX, ioTimeoutMs * LAST_TRY_PART)
    if (timeLeftMs <= 0) return false
    const longestMs = Math.min(WAIT_MS_MAX, ioTimeoutMs * WAIT_PART_MAX)
    const ownMs = Math.min(FIRST_WAIT_MS * 2 ** (this.#tries - 1), longestMs) * (0.5 + Math.random() / 2)
    const waitMs = Math.min(timeLeftMs, Math.max(ownMs, retryAfterMs(failure)))
    await sleep(waitMs, undefined, signal ? { signal } : {}).catch(() => {})
    return true
  }
}

/**
 * Runs `attempt` until it gives something. The signal it gets fires when the attempt has taken too
 * long or the caller has given up; whatever it opens after that it must close itself.
 *
 * Throws the last attempt's error as it was, INTERRUPTED, or UPSTREAM_UNAVAILABLE when time is up.
 */
export async function withRetries<T>(
  what: string,
  progress: Progress,
  signal: AbortSignal | undefined,
  attempt: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return await whilePassing(what, progress, signal, {
    attempt: () => bounded(progress.connectionMs(), signal, attempt),
    mayPass: error => failureClass(error) === 'passes',
  })
}

/** The same for other failures than those of the network: `mayPass` says which are worth another try, and `attempt` ends by itself. */
export async function whilePassing<T>(
  what: string,
  progress: Progress,
  signal: AbortSignal | undefined,
  { attempt, mayPass }: { attempt(): Promise<T>; mayPass(error: unknown): boolean },
): Promise<T> {
  const backoff = new Backoff(progress)
  const notice = new WaitNotice(what, progress)
  // The last try is often cut short, and says less than those before it.
  let telling: unknown
  try {
    for (;;) {
      throwIfAborted(signal)
      let failure: unknown
      try {
        return await attempt()
      } catch (error) {
        failure = error
      }
      throwIfAborted(signal)
      if (!mayPass(failure)) throw failure
      if (!(failure instanceof SilenceError)) {
        telling = failure
        notice.failed(failure)
      }
      if (await backoff.wait(failure, signal)) continue
      // The words for it say what to do.
      if (isClockSkew(failure)) throw failure
      const reason = telling === undefined ? '' : `: ${reasonOf(telling)}`
      throw new BobbinError(
        'UPSTREAM_UNAVAILABLE',
        `no progress on ${what} within ${formatDuration(progress.ioTimeoutMs)}, in ${backoff.tries} tries${reason}`,
        { cause: failure },
      )
    }
  } finally {
    notice.end()
  }
}

/** One attempt, which ends when the time or the caller says so, even if the attempt ignores its signal. */
async function bounded<T>(
  timeoutMs: number,
  signal: AbortSignal | undefined,
  attempt: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController()
  const stop = () => controller.abort(new BobbinError('INTERRUPTED', 'interrupted'))
  const timer = setTimeout(() => controller.abort(new SilenceError('no answer')), timeoutMs)
  signal?.addEventListener('abort', stop, { once: true })
  try {
    const aborted = new Promise<never>((_resolve, reject) => {
      controller.signal.addEventListener('abort', () => reject(controller.signal.reason), { once: true })
    })
    return await Promise.race([attempt(controller.signal), aborted])
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
  }
}
