/**
 * Fills stretches of a layout with bytes, in worker threads: files are read synchronously into a buffer that
 * both threads see, never copied.
 *
 * With `rehash` every object is hashed again as it is served, against a disk that lies: the whole object
 * before the first of its bytes is in the buffer.
 */
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { Piscina } from 'piscina'
import { BobbinError, type ErrorCode, type ObjectHash, WORKER_FLAGS } from '../../daemon/model/index.js'
import type { Layout } from '../format/layout.js'

/** An object as the store has it. */
export interface PackedObject {
  readonly path: string
  /** Bytes. */
  readonly size: number
  readonly hash: ObjectHash
}

export interface FileRead {
  readonly path: string
  /** First byte in the file. */
  readonly start: number
  readonly length: number
  /** Where it goes in the buffer. */
  readonly at: number
  /** Of the whole file. */
  readonly size: number
  /** Hash it before anything of it is served. */
  readonly hash?: ObjectHash
}

export interface PackTask {
  readonly buffer: SharedArrayBuffer
  readonly reads: readonly FileRead[]
}

/** The first read that failed. OBJECT_GONE: the file is missing or short. */
export interface PackFailure {
  readonly path: string
  readonly code: ErrorCode
  readonly message: string
}

/**
 * The unit of reading, handing over and writing. Larger ones gain little (a hand-over costs 0.1 ms, reading 2 MiB
 * 0.5 ms), and each open answer holds two.
 */
export const CHUNK_BYTES = 2 * 2 ** 20
/** Kept for the next answers; more than this are left to the garbage collector. */
const SPARE_BUFFERS_MAX = 16

/** An object's file is not there, or is shorter than it was: it may be fetched again. */
export class ObjectVanished extends BobbinError {
  constructor(
    readonly path: string,
    message: string,
  ) {
    super('LOCAL_IO', message)
  }
}

export class Packing {
  readonly #pool: Piscina<PackTask, PackFailure | undefined>
  readonly #spare: SharedArrayBuffer[] = []

  constructor(private readonly options: { readonly rehash?: boolean } = {}) {
    this.#pool = new Piscina({
      filename: fileURLToPath(new URL('./pack-worker.js', import.meta.url)),
      minThreads: availableParallelism(),
      maxThreads: availableParallelism(),
      execArgv: WORKER_FLAGS,
    })
  }

  /**
   * The bytes `from` to `to` of a layout, at most CHUNK_BYTES; give the buffer back with `recycle`. Throws
   * ObjectVanished, OBJECT_CORRUPT (with `rehash`), LOCAL_IO.
   */
  async fill(
    layout: Layout,
    from: number,
    to: number,
    objectOf: (object: number) => PackedObject,
    rehashed: Set<number>,
  ): Promise<Uint8Array> {
    const buffer = this.#spare.pop() ?? new SharedArrayBuffer(CHUNK_BYTES)
    const bytes = new Uint8Array(buffer, 0, to - from)
    const reads: FileRead[] = []
    for (const segment of layout.within(from, to)) {
      const start = Math.max(segment.at, from)
      const end = Math.min(segment.at + segment.length, to)
      const at = start - from
      switch (segment.kind) {
        case 'bytes':
          bytes.set(segment.bytes.subarray(start - segment.at, end - segment.at), at)
          break
        case 'object': {
          const { path, size, hash } = objectOf(segment.object)
          const isNew = this.options.rehash && !rehashed.has(segment.object)
          if (isNew) rehashed.add(segment.object)
          reads.push({
            path,
            start: segment.start + start - segment.at,
            length: end - start,
            at,
            size,
            ...(isNew && { hash }),
          })
          break
        }
        default:
          segment satisfies never
      }
    }
    const failed = reads.length === 0 ? undefined : await this.#pool.run({ buffer, reads })
    if (failed === undefined) return bytes
    this.recycle(bytes)
    if (failed.code === 'OBJECT_GONE') throw new ObjectVanished(failed.path, failed.message)
    throw new BobbinError(failed.code, failed.message)
  }

  recycle({ buffer }: Uint8Array): void {
    if (this.#spare.length < SPARE_BUFFERS_MAX && buffer instanceof SharedArrayBuffer) this.#spare.push(buffer)
  }

  async close(): Promise<void> {
    await this.#pool.destroy()
  }
}
