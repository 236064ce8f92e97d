/**
 * Maps a sequence, in order, with several calls under way: at first one, then twice as many after each result that was wanted,
 * up to `concurrencyMax`. A reader that stops at the first result costs one call. Each call gets a signal of its own that fires with
 * the caller's: each request listens to its signal, and Node.js takes more than ten listeners of one signal for a leak.
 */
export async function* readAhead<In, Out>(
  items: Iterable<In> | AsyncIterable<In>,
  concurrencyMax: number,
  signal: AbortSignal | undefined,
  map: (item: In, signal: AbortSignal | undefined) => Promise<Out>,
): AsyncGenerator<Out> {
  const rest = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]()
  const pending: Promise<Out>[] = []
  for (let concurrency = 1; ; concurrency = Math.min(2 * concurrency, concurrencyMax)) {
    while (pending.length < concurrency) {
      const next = await rest.next()
      if (next.done) break
      const result = map(next.value, signal && AbortSignal.any([signal]))
      // Nobody may ever ask for it, and then its failure is nobody's.
      result.catch(() => {})
      pending.push(result)
    }
    const first = pending.shift()
    if (first === undefined) return
    yield await first
  }
}
