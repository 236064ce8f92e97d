/** What runs in a packing thread: reads files into a buffer. */
import '../../daemon/model/library-words.js'
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { BobbinError, localError, systemCode } from '../../daemon/model/index.js'
import { createObjectHasher } from '../../daemon/model/object-hash.js'
import type { FileRead, PackFailure, PackTask } from './packing.js'

const HASH_BYTES = 2 ** 20
let hashBuffer: Buffer | undefined

// A default export is what piscina asks for.
export default async function pack({ buffer, reads }: PackTask): Promise<PackFailure | undefined> {
  const bytes = new Uint8Array(buffer)
  for (const read of reads) {
    try {
      await readFile(read, bytes)
    } catch (error) {
      const { code, message } = localError(`read ${read.path}`, error)
      return { path: read.path, code, message }
    }
  }
  return undefined
}

async function readFile(read: FileRead, bytes: Uint8Array): Promise<void> {
  let fd: number
  try {
    fd = openSync(read.path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') throw gone(read, 'is not there any more')
    throw error
  }
  try {
    // Most objects lie in one chunk as a whole: they are hashed where they will be sent from.
    const isWhole = read.start === 0 && read.length === read.size
    if (!isWhole && read.hash !== undefined) await rehash(fd, read)
    for (let done = 0; done < read.length; ) {
      const n = readSync(fd, bytes, read.at + done, read.length - done, read.start + done)
      if (n === 0) throw gone(read, 'is shorter than it was')
      done += n
    }
    if (isWhole) await check(fd, read, [bytes.subarray(read.at, read.at + read.length)])
  } finally {
    closeSync(fd)
  }
}

function gone({ path }: FileRead, why: string): BobbinError {
  return new BobbinError('OBJECT_GONE', `the object's file ${path} ${why}`)
}

async function rehash(fd: number, read: FileRead): Promise<void> {
  hashBuffer ??= Buffer.allocUnsafeSlow(HASH_BYTES)
  await check(fd, read, piecesOf(fd, hashBuffer))
}

function* piecesOf(fd: number, buffer: Buffer): Generator<Uint8Array> {
  for (let done = 0; ; ) {
    const n = readSync(fd, buffer, 0, buffer.length, done)
    if (n === 0) return
    yield buffer.subarray(0, n)
    done += n
  }
}

/** Throws OBJECT_CORRUPT unless these pieces are the object, and all of its file. */
async function check(fd: number, { path, size, hash }: FileRead, pieces: Iterable<Uint8Array>): Promise<void> {
  if (hash === undefined) return
  const hasher = await createObjectHasher(hash.type, size)
  for (const piece of pieces) hasher.update(piece)
  const found = hasher.digest()
  if (fstatSync(fd).size === size && found === hash.hex) return
  throw new BobbinError('OBJECT_CORRUPT', `${path} hashes to ${found}, not to ${hash.hex}`)
}
