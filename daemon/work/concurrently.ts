/**
 * Runs `work` on each item, `atOnce` of them at a time, taking the next item only when there is a
 * place: endless sequences take no memory. After the first failure no more are taken; the signal
 * that `work` gets fires, and when all have stopped the failure is thrown.
 */
import { setMaxListeners } from 'node:events'
import { throwIfAborted } from '../model/index.js'

export async function concurrently<T>(
  items: Iterable<T> | AsyncIterable<T>,
  atOnce: number,
  signal: AbortSignal | undefined,
  work: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const failed = new AbortController()
  const stop = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal
  setMaxListeners(0, stop)
  let firstError: unknown
  let underWay = 0
  let onEnd = () => {}
  const start = (item: T) => {
    underWay++
    work(item, stop)
      .catch((error: unknown) => {
        firstError ??= error
        failed.abort()
      })
      .finally(() => {
        underWay--
        onEnd()
      })
  }
  const nextEnd = () =>
    new Promise<void>(resolve => {
      onEnd = resolve
    })
  try {
    for await (const item of items) {
      if (stop.aborted) break
      start(item)
      if (underWay >= atOnce) await nextEnd()
    }
  } catch (error) {
    firstError ??= error
    failed.abort()
  }
  while (underWay > 0) await nextEnd()
  if (firstError !== undefined) throw firstError
  throwIfAborted(signal)
}
