/**
 * Scans the pieces of a manifest, a large one's in worker threads: parsing is most of the work of
 * compiling, and the pieces do not depend on each other (measured: ARCHITECTURE.md, Compiling).
 */
import { availableParallelism } from 'node:os'
import type { Registry } from '../model/index.js'
import type { ManifestPiece } from './manifest-reader.js'
import { RowScanner, type ScannedPiece } from './scan-rows.js'

/** Starting workers takes about as long as scanning this much. */
const INLINE_BYTES_MAX = 16 * 1024 * 1024
/** More would wait for the one thread that takes the pieces in order. */
const THREADS_MAX = 4

export interface ScanPool {
  /** Takes the piece's memory. */
  scan(piece: ManifestPiece): Promise<ScannedPiece>
  /** How many pieces to have under way. */
  readonly width: number
  close(): Promise<void>
}

/** What a worker gets. */
export interface ScanTask {
  readonly bytes: ArrayBuffer
  readonly length: number
  readonly offset: number
  readonly registryKind: Registry['kind']
}

export async function startScanPool(registryKind: Registry['kind'], manifestBytes: number): Promise<ScanPool> {
  if (manifestBytes <= INLINE_BYTES_MAX) {
    const scanner = new RowScanner(registryKind)
    return {
      width: 1,
      scan: async ({ bytes, offset }) => scanner.scan(bytes, (_line, from) => offset + from),
      close: async () => {},
    }
  }
  const { Piscina } = await import('piscina')
  const threads = Math.min(THREADS_MAX, Math.max(2, availableParallelism()))
  const pool = new Piscina({
    filename: new URL('./scan-worker.js', import.meta.url).href,
    minThreads: threads,
    maxThreads: threads,
    // Two under way in each thread, so that none waits for its next piece.
    concurrentTasksPerWorker: 2,
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  })
  return {
    width: threads * 2 + 1,
    scan: ({ bytes, offset }) => {
      // Readers give each piece an ArrayBuffer of its own, so it can be handed over without a copy.
      const task: ScanTask = { bytes: bytes.buffer as ArrayBuffer, length: bytes.length, offset, registryKind }
      return pool.run(task, { transferList: [task.bytes] }) as Promise<ScannedPiece>
    },
    close: () => pool.destroy(),
  }
}
