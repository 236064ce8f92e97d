/**
 * Two outputs of runs, compared by tensor. The files may be a stranger's, so they are read in a process of their own
 * (confined.ts): it has a bound on memory and on time, no environment, and executes nothing of what it reads.
 */
import { statSync } from 'node:fs'
import { runConfined } from '../../daemon/confined/confined.js'
import { BobbinError } from '../../daemon/model/index.js'
import type { FileOfRun, TensorComparison } from './compare.js'

export type { FileOfRun, TensorComparison, TensorDifference } from './compare.js'

const HEAP_MIB = 512
/** A slow disk reads so much in a second, and the comparison is faster than that. */
const BYTES_PER_SECOND = 20 * 2 ** 20
const DEADLINE_MS = 60_000

/** `string`: why there is no comparison. Throws INTERRUPTED. */
export async function compareTensors(
  recorded: FileOfRun,
  found: FileOfRun,
  signal: AbortSignal | undefined,
): Promise<TensorComparison | string> {
  try {
    const bytes = sizeOf(recorded.path) + sizeOf(found.path)
    const deadlineMs = DEADLINE_MS + Math.ceil((1000 * bytes) / BYTES_PER_SECOND)
    const options = { what: 'compare the tensors', deadlineMs, heapMib: HEAP_MIB, signal }
    return await runConfined<TensorComparison>(new URL('./worker.js', import.meta.url), { recorded, found }, options)
  } catch (error) {
    if (!(error instanceof BobbinError) || error.code === 'INTERRUPTED') throw error
    return error.message
  }
}

/** What cannot be looked at cannot be read either, and that is told where it is read. */
function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0
}

/** Is a file, by its name, one whose tensors may be compared? */
export function mayHoldTensors(path: string): boolean {
  return /\.(?:safetensors|npy|npz|pt|pth|ckpt|bin)$/i.test(path)
}
