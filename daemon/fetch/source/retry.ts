/**
 * The one layer that retries the network (the SDK's own retries are off).
 *
 * What is worth another try is decided by `triesMax` of the error; the waits between tries double,
 * with jitter. All tries together end with the progress clock: a request without any answer fails
 * after the I/O time-out, not after a multiple of it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { BobbinError, formatDuration, throwIfAborted } from '../../model/index.js'
import { triesMax } from './errors.js'
import type { Progress } from './progress.js'

const FIRST_WAIT_MS = 100
/** S3 asks throttled clients to slow down for seconds, not minutes. */
const WAIT_MS_MAX = 5_000

/** An attempt that got no answer in time. */
export class SilenceError extends Error {
  override readonly name = 'SilenceError'
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
  for (let tries = 1; ; tries++) {
    throwIfAborted(signal)
    let failure: unknown
    try {
      return await bounded(progress.connectionMs(), signal, attempt)
    } catch (error) {
      failure = error
    }
    throwIfAborted(signal)
    const waitMs = Math.min(FIRST_WAIT_MS * 2 ** (tries - 1), WAIT_MS_MAX) * (0.5 + Math.random() / 2)
    if (progress.remainingMs() <= waitMs && triesMax(failure) > 1) {
      const reason = failure instanceof SilenceError ? '' : ` (${failure instanceof Error ? failure.message : failure})`
      throw new BobbinError(
        'UPSTREAM_UNAVAILABLE',
        `no progress on ${what} within ${formatDuration(progress.ioTimeoutMs)}, in ${tries} tries${reason}`,
        { cause: failure },
      )
    }
    if (tries >= triesMax(failure)) throw failure
    await sleep(waitMs, undefined, signal ? { signal } : {}).catch(() => {})
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
