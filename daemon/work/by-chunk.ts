/** Does something for each chunk of a large object, several chunks at a time. */

/**
 * Calls `work` for each index below `count`, at most `lanes` at a time: no more of one object's chunks wait for a
 * turn than can be under way, so that those of other objects have theirs between them. After a failure no more are
 * begun; resolves or throws when none is under way.
 */
export async function byChunk<T>(count: number, lanes: number, work: (index: number) => Promise<T>): Promise<T[]> {
  const results: T[] = Array.from({ length: count })
  let next = 0
  const lane = async (): Promise<void> => {
    try {
      while (next < count) {
        const index = next++
        results[index] = await work(index)
      }
    } catch (error) {
      next = count
      throw error
    }
  }
  const outcomes = await Promise.allSettled(Array.from({ length: Math.min(lanes, count) }, lane))
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
  return results
}
