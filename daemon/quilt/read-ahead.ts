/**
 * Maps a sequence, in order, with several calls under way: at first one, then twice as many after
 * each result that was wanted, up to `concurrencyMax`. Who stops at the first costs one call.
 */
export async function* readAhead<In, Out>(
  items: Iterable<In>,
  concurrencyMax: number,
  map: (item: In) => Promise<Out>,
): AsyncGenerator<Out> {
  const rest = items[Symbol.iterator]()
  const pending: Promise<Out>[] = []
  for (let concurrency = 1; ; concurrency = Math.min(2 * concurrency, concurrencyMax)) {
    while (pending.length < concurrency) {
      const next = rest.next()
      if (next.done) break
      const result = map(next.value)
      // Nobody may ever ask for it, and then its failure is nobody's.
      result.catch(() => {})
      pending.push(result)
    }
    const first = pending.shift()
    if (first === undefined) return
    yield await first
  }
}
