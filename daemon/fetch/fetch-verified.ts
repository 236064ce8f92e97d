/**
 * One object, from its physical key into an open file, checked: what the fetcher, `install` and
 * `cat` share. Large objects of type sha2-256-chunked come chunk by chunk, several at a time; their
 * value is the hash of the chunks' hashes, in order. The other types need their bytes in order.
 */
import { setMaxListeners } from 'node:events'
import { ftruncateSync } from 'node:fs'
import { BobbinError, formatPhysicalKey, hasCode, type Log, type ObjectSpec } from '../model/index.js'
import { chunkBytes, chunkCount, combineChunkDigests } from '../model/object-hash.js'
import { byChunk } from '../work/by-chunk.js'
import { NO_RANGES } from '../work/jobs.js'
import { CHUNK_JOBS_MAX, type JobOptions, type Workers } from '../work/workers.js'

export interface FetchVerifiedOptions extends JobOptions {
  /** Names the object in messages; an entry's key. */
  readonly label?: string | undefined
  readonly log: Log
  /** Folders that a file has to lie in; `undefined`: anywhere. */
  readonly within?: readonly string[] | undefined
  /** Called before the second try. */
  readonly onRefetch?: () => void
  /** Do not try twice: the caller knows another place. */
  readonly isOneOfMany?: boolean
}

/**
 * Leaves exactly the object's bytes in the file, or throws. What is wrong is fetched once more on a
 * fresh connection, then OBJECT_CORRUPT; other errors are the source's (OBJECT_GONE, ACCESS_DENIED,
 * UPSTREAM_UNAVAILABLE), STORE_FULL and INTERRUPTED. When it returns, nobody writes to the file.
 */
export async function fetchVerified(
  workers: Workers,
  spec: ObjectSpec,
  fd: number,
  options: FetchVerifiedOptions,
): Promise<void> {
  try {
    try {
      await fetchOnce(workers, spec, fd, false, options)
    } catch (error) {
      if (!hasCode(error, 'OBJECT_CORRUPT') || options.isOneOfMany) throw error
      options.log.warn(fieldsOf(spec, options.label), `${error.message}; fetching it once more`)
      options.onRefetch?.()
      await fetchOnce(workers, spec, fd, true, options)
    }
  } catch (error) {
    if (hasCode(error, 'OBJECT_CORRUPT') && !options.isOneOfMany)
      options.log.error(fieldsOf(spec, options.label), error.message)
    throw withLabel(error, options.label)
  }
}

function fieldsOf({ physicalKey, size, hash }: ObjectSpec, label: string | undefined): object {
  return { key: label, physicalKey: formatPhysicalKey(physicalKey), size, hashType: hash.type, expected: hash.hex }
}

function withLabel(error: unknown, label: string | undefined): unknown {
  if (label === undefined || !(error instanceof BobbinError) || error.code === 'INTERRUPTED') return error
  return new BobbinError(error.code, `${label}: ${error.message}`, { cause: error })
}

async function fetchOnce(
  workers: Workers,
  spec: ObjectSpec,
  fd: number,
  isFresh: boolean,
  options: FetchVerifiedOptions,
): Promise<void> {
  const { physicalKey, size, hash } = spec
  const { within } = options
  // A first try may have left more bytes than there are.
  if (isFresh) ftruncateSync(fd, 0)
  const isByChunk = hash.type === 'sha2-256-chunked' && chunkCount(size) > 1
  const job = { kind: 'fetch', key: physicalKey, within, objectBytes: size, hashType: hash.type, fd, isFresh } as const
  let found = isByChunk ? await fetchChunks(workers, spec, fd, isFresh, options) : NO_RANGES
  if (found === NO_RANGES) found = await workers.fetch(job, options)
  if (found === hash.hex) return
  throw new BobbinError(
    'OBJECT_CORRUPT',
    `${formatPhysicalKey(physicalKey)} hashes to ${found}, the manifest says ${hash.hex} (${hash.type})`,
  )
}

async function fetchChunks(
  workers: Workers,
  spec: ObjectSpec,
  fd: number,
  isFresh: boolean,
  options: FetchVerifiedOptions,
): Promise<string> {
  const chunk = chunkBytes(spec.size)
  const failed = new AbortController()
  const signal = options.signal ? AbortSignal.any([options.signal, failed.signal]) : failed.signal
  // One listener a chunk that is under way.
  setMaxListeners(0, signal)
  const progress = new SumOfProgress(options.onBytes)
  let firstError: unknown
  const fetchChunk = async (index: number): Promise<Buffer> => {
    const start = index * chunk
    const range = { start, length: Math.min(chunk, spec.size - start) }
    const { within, onTurn } = options
    const job = { kind: 'fetch', key: spec.physicalKey, within, objectBytes: spec.size, fd, isFresh } as const
    const jobOptions = { signal, onTurn, onBytes: progress.next() }
    const hex = await workers.fetch({ ...job, range, hashType: 'SHA256' }, jobOptions)
    if (hex === NO_RANGES) throw new WithoutRanges()
    return Buffer.from(hex, 'hex')
  }
  try {
    const digests = await byChunk(chunkCount(spec.size), CHUNK_JOBS_MAX, index =>
      workers.chunkLimit(fetchChunk, index).catch((error: unknown) => {
        // Those under way write to the file: they are ended, and waited for.
        firstError ??= error
        failed.abort()
        throw firstError
      }),
    )
    return combineChunkDigests(digests)
  } catch (error) {
    if (error instanceof WithoutRanges) return NO_RANGES
    throw error
  }
}

/** Ends the fetch by chunk, for one of the whole object. */
class WithoutRanges extends Error {}

/** Adds up what several jobs report. */
class SumOfProgress {
  #sum = 0

  constructor(private readonly onBytes: ((bytes: number) => void) | undefined) {}

  next(): ((bytes: number) => void) | undefined {
    const { onBytes } = this
    if (onBytes === undefined) return undefined
    let reported = 0
    return bytes => {
      this.#sum += bytes - reported
      reported = bytes
      onBytes(this.#sum)
    }
  }
}
