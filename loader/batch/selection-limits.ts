/** What selecting entries may cost: known before it begins, whatever the expression is. */
import type { ConfinedOptions } from '../../daemon/confined/confined.js'

/** Starting, and a row or two that are large. */
const BASE_MS = 30_000
/** An expression over 800 bytes of metadata takes a third of it on a busy machine. Ten million entries may take 17 minutes. */
const ROW_MS = 0.1
/** The largest samples of a batch of ten million take 240 MiB; rows are looked at one by one. */
const HEAP_MIB = 512

export function selectionLimits(entries: number): Pick<ConfinedOptions, 'deadlineMs' | 'heapMib'> {
  return { deadlineMs: BASE_MS + Math.ceil(entries * ROW_MS), heapMib: HEAP_MIB }
}
