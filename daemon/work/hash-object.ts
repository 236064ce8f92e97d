/** Hashes an object that lies in an open file, on all cores where its hash type allows it. */
import type { HashType } from '../model/index.js'
import { chunkBytes, chunkCount, combineChunkDigests } from '../model/object-hash.js'
import type { HashFile } from '../store/hash-file.js'
import { byChunk } from './by-chunk.js'
import type { JobOptions, Workers } from './workers.js'

/** The hash (hex) of the file's first `size` bytes. */
export async function hashObject(
  workers: Workers,
  fd: number,
  type: HashType,
  size: number,
  options: JobOptions = {},
): Promise<string> {
  if (type !== 'sha2-256-chunked' || chunkCount(size) < 2) {
    return await workers.hash({ kind: 'hash', fd, range: { start: 0, length: size }, hashType: type }, options)
  }
  const chunk = chunkBytes(size)
  let done = 0
  const digests = await byChunk(chunkCount(size), workers.hashJobsMax, async index => {
    const start = index * chunk
    const length = Math.min(chunk, size - start)
    const job = { kind: 'hash', fd, range: { start, length }, hashType: 'SHA256' } as const
    const hex = await workers.hash(job, { signal: options.signal, onTurn: options.onTurn })
    done += length
    options.onBytes?.(done)
    return Buffer.from(hex, 'hex')
  })
  return combineChunkDigests(digests)
}

/** For the store: it hashes again with this. */
export function hashFileOn(workers: Workers): HashFile {
  return (fd, type, size, options) => hashObject(workers, fd, type, size, options)
}
