/**
 * Scans the pieces of a manifest, a large one's in worker threads: parsing is most of the work of
 * compiling, and the pieces do not depend on each other (measured: docs/decisions/packages.md, Compiling).
 */
import { availableParallelism } from 'node:os'
import { type Registry, WORKER_FLAGS } from '../model/index.js'
import { type ManifestPiece, PIECE_BYTES } from './manifest-reader.js'
import { RowScanner, type ScanMemory, type ScannedPiece, scanMemory } from './scan-rows.js'

/** Starting workers takes about as long as scanning this much. */
const INLINE_BYTES_MAX = 16 * 1024 * 1024
/** More would wait for the one thread that takes the pieces in order. */
const THREADS_MAX = 4

/**
 * Pieces under way: `memoryFor` gives a piece its memory, `scan` scans it, and `release` takes the
 * memory back, for another piece, when the result has been used up.
 */
export interface ScanPool {
  memoryFor(bytes: number): ArrayBufferLike
  scan(piece: ManifestPiece): Promise<ScannedPiece>
  release(piece: ManifestPiece): void
  /** How many pieces may be between `memoryFor` and `release`. */
  readonly width: number
  close(): Promise<void>
}

/** What a worker gets: shared memory, so that nothing is copied and nothing is left to collect. */
export interface ScanTask {
  readonly bytes: Uint8Array
  readonly offset: number
  readonly registryKind: Registry['kind']
  readonly memory: ScanMemory
}

export async function startScanPool(registryKind: Registry['kind'], manifestBytes: number): Promise<ScanPool> {
  const slots = new Slots()
  const common = { memoryFor: slots.memoryFor, release: slots.release }
  if (manifestBytes <= INLINE_BYTES_MAX) {
    const scanner = new RowScanner(registryKind)
    return {
      ...common,
      width: 1,
      scan: async piece => scanner.scan(piece.bytes, (_line, from) => piece.offset + from, slots.resultsOf(piece)),
      close: async () => {},
    }
  }
  const { Piscina } = await import('piscina')
  const threads = Math.min(THREADS_MAX, Math.max(2, availableParallelism()))
  const pool = new Piscina<ScanTask, ScannedPiece>({
    filename: new URL('./scan-worker.js', import.meta.url).href,
    minThreads: threads,
    maxThreads: threads,
    // Two under way in each thread, so that none waits for its next piece.
    concurrentTasksPerWorker: 2,
    execArgv: WORKER_FLAGS,
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  })
  // An answer that crosses the end of the pool belongs to a piece that was given up.
  let isClosing = false
  pool.on('error', error => {
    if (!isClosing) throw error
  })
  return {
    ...common,
    width: threads * 2 + 1,
    scan: piece => pool.run({ bytes: piece.bytes, offset: piece.offset, registryKind, memory: slots.resultsOf(piece) }),
    close: () => {
      isClosing = true
      return pool.destroy()
    },
  }
}

interface Slot {
  readonly piece: SharedArrayBuffer
  readonly results: ScanMemory
}

/** Memory for pieces and their results, used again and again. */
class Slots {
  readonly #free: Slot[] = []
  readonly #used = new Map<ArrayBufferLike, Slot>()

  readonly memoryFor = (bytes: number): ArrayBufferLike => {
    // A row that is longer than a piece gets memory for once.
    if (bytes > PIECE_BYTES) return new SharedArrayBuffer(bytes)
    const slot = this.#free.pop() ?? {
      piece: new SharedArrayBuffer(PIECE_BYTES),
      results: scanMemory(PIECE_BYTES, SharedArrayBuffer),
    }
    this.#used.set(slot.piece, slot)
    return slot.piece
  }

  resultsOf({ bytes }: ManifestPiece): ScanMemory {
    return this.#used.get(bytes.buffer)?.results ?? scanMemory(bytes.length, SharedArrayBuffer)
  }

  readonly release = ({ bytes }: ManifestPiece): void => {
    const slot = this.#used.get(bytes.buffer)
    if (slot === undefined) return
    this.#used.delete(slot.piece)
    this.#free.push(slot)
  }
}
