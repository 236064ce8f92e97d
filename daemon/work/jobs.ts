/**
 * What a worker does, whole: fetch bytes into a file while hashing them, or hash a file.
 *
 * What came over the network is written synchronously: Node.js's thread pool would cost a hand-over for
 * every piece. A file that is hashed is read in pieces that the thread waits for, so that the fetches of
 * the same thread go on between them. Descriptors are shared by all threads of the
 * process, so a job gets the number of a file that somebody else opened and will close.
 */
import { closeSync, constants, fstatSync, openSync, read, readSync, writeSync } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { promisify } from 'node:util'
import {
  BobbinError,
  type ByteRange,
  formatPhysicalKey,
  type HashType,
  localError,
  type PhysicalKey,
  type Source,
  systemCode,
} from '../model/index.js'
import { createObjectHasher } from '../model/object-hash.js'
import type { JobControl } from './job-control.js'

/** Fetches an object, or a range of it, into a file, at the same position. */
export interface FetchJob {
  readonly kind: 'fetch'
  readonly key: PhysicalKey
  /** Default: the whole object. */
  readonly range?: ByteRange
  /** Folders that a file has to lie in; `undefined`: anywhere. */
  readonly within?: readonly string[] | undefined
  /** Of the whole object, as the manifest says. Bytes. */
  readonly objectBytes: number
  /** Of what is fetched. */
  readonly hashType: HashType
  readonly fd: number
  /** Not over a connection that was used before: what came over it was wrong. */
  readonly isFresh: boolean
}

/** Hashes a range of an open file. */
export interface HashJob {
  readonly kind: 'hash'
  readonly fd: number
  readonly range: ByteRange
  /** Of what is hashed. */
  readonly hashType: HashType
}

export interface FileToHash {
  readonly path: string
  /** Bytes. */
  readonly size: number
  readonly hashType: HashType
}

/** Hashes files, following symbolic links. */
export interface HashFilesJob {
  readonly kind: 'hash-files'
  readonly files: readonly FileToHash[]
}

/** `different`: it is no regular file of that size, and was not read. */
export type HashedFile = { readonly hex: string } | 'missing' | 'different'

/** Loads what fetches need, so that the first one does not wait for it. */
export interface PrepareJob {
  readonly kind: 'prepare'
}

export type Job = FetchJob | HashJob | HashFilesJob | PrepareJob

/** In place of a hash: the server has no ranges, so the object has to be fetched as a whole. */
export const NO_RANGES = 'no ranges'

/**
 * The hash (hex) of the bytes, or NO_RANGES. Throws OBJECT_CORRUPT when the object has another size, and what the source
 * throws.
 */
export async function runFetch(job: FetchJob, source: Source, control: JobControl): Promise<string> {
  const { key, range, within, objectBytes, fd } = job
  const start = range?.start ?? 0
  const length = range?.length ?? objectBytes
  const { signal } = control
  const reading = await source.read(key, { range, within, signal })
  if (reading.isWhole) {
    await reading.chunks[Symbol.asyncIterator]().return?.()
    return NO_RANGES
  }
  const hasher = await createObjectHasher(job.hashType, length)
  let done = 0
  // Leaving the loop early closes the reading, also by the throws.
  for await (const chunk of reading.chunks) {
    control.throwIfCancelled()
    if (reading.objectBytes !== undefined && reading.objectBytes !== objectBytes) break
    if (done + chunk.length > length) throw sizeError(key, objectBytes, reading.objectBytes)
    hasher.update(chunk)
    writeFully(fd, chunk, start + done)
    done += chunk.length
    control.addBytes(chunk.length)
  }
  if (done !== length || (reading.objectBytes ?? objectBytes) !== objectBytes) {
    throw sizeError(key, objectBytes, reading.objectBytes ?? start + done)
  }
  return hasher.digest()
}

function sizeError(key: PhysicalKey, expected: number, found: number | undefined): BobbinError {
  const size = found === undefined ? 'more' : String(found)
  return new BobbinError(
    'OBJECT_CORRUPT',
    `${formatPhysicalKey(key)} has ${size} bytes, the manifest says ${expected}: the object was changed after the package was made`,
  )
}

function writeFully(fd: number, bytes: Uint8Array, position: number): void {
  try {
    for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, position + at)
  } catch (error) {
    throw localError('write the fetched object', error)
  }
}

/** Hashed in 1 to 3 ms, which is how long a fetch of the same thread waits for it. */
const PIECE_BYTES = 1 << 20
/** A file that ends within so many bytes is read at once: the hand-over would cost more than the reading. */
const READ_AT_ONCE_BYTES = 128 * 1024
/** Of this thread: a job has one while it reads. As many are kept as were ever needed at a time (HASH_JOBS_A_THREAD). */
const pieces: Buffer[] = []
const readPiece = promisify(read)

/** The hash (hex) of the bytes that are there, also when they are fewer. */
export async function runHash(job: HashJob, control: JobControl): Promise<string> {
  const { fd, range } = job
  const hasher = await createObjectHasher(job.hashType, range.length)
  const piece = pieces.pop() ?? Buffer.allocUnsafeSlow(PIECE_BYTES)
  try {
    for (let done = 0; done < range.length; ) {
      control.throwIfCancelled()
      const length = Math.min(PIECE_BYTES, range.length - done)
      let bytes: number
      try {
        if (range.length <= READ_AT_ONCE_BYTES) bytes = readSync(fd, piece, 0, length, range.start + done)
        else ({ bytesRead: bytes } = await readPiece(fd, piece, 0, length, range.start + done))
      } catch (error) {
        throw localError('read a file to hash it', error)
      }
      if (bytes === 0) break
      hasher.update(piece.subarray(0, bytes))
      done += bytes
      control.addBytes(bytes)
    }
  } finally {
    pieces.push(piece)
  }
  return hasher.digest()
}

export async function runHashFiles(job: HashFilesJob, control: JobControl): Promise<HashedFile[]> {
  const found: HashedFile[] = []
  let unbroken = 0
  for (const file of job.files) {
    control.throwIfCancelled()
    found.push(await hashNamedFile(file, control))
    unbroken += file.size
    if (unbroken < PIECE_BYTES) continue
    unbroken = 0
    await setImmediate()
  }
  return found
}

async function hashNamedFile(file: FileToHash, control: JobControl): Promise<HashedFile> {
  return withFileToHash(file, async fd => ({
    hex: await runHash({ kind: 'hash', fd, range: { start: 0, length: file.size }, hashType: file.hashType }, control),
  }))
}

/** Opens a file that ought to have this size, whatever lies in its place. */
export async function withFileToHash(
  { path, size }: Pick<FileToHash, 'path' | 'size'>,
  use: (fd: number) => Promise<HashedFile>,
): Promise<HashedFile> {
  let fd: number
  try {
    // A fifo must not make us wait, a terminal must not become ours.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  } catch (error) {
    const code = systemCode(error) ?? ''
    if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes(code)) return 'missing'
    // A socket, or a device without its hardware.
    if (['ENXIO', 'ENODEV'].includes(code)) return 'different'
    throw localError(`read ${path}`, error)
  }
  try {
    const stats = fstatSync(fd)
    return stats.isFile() && stats.size === size ? await use(fd) : 'different'
  } finally {
    closeSync(fd)
  }
}
