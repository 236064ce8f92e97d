/** Hashes an open file, in this thread; daemon/fetch does the same on all cores. */
import { read } from 'node:fs'
import { promisify } from 'node:util'
import { type HashType, throwIfAborted } from '../model/index.js'
import { createObjectHasher } from '../quilt/object-hash.js'

/** The hash (hex) of the `size` bytes of an open file; of fewer, when it is shorter. */
export type HashFile = (fd: number, type: HashType, size: number, signal?: AbortSignal) => Promise<string>

const READ_BYTES = 1 << 20

export const hashFile: HashFile = async (fd, type, size, signal) => {
  const hasher = await createObjectHasher(type, size)
  const buffer = Buffer.allocUnsafe(Math.min(READ_BYTES, Math.max(size, 1)))
  for (let at = 0; at < size; ) {
    throwIfAborted(signal)
    const { bytesRead } = await promisify(read)(fd, buffer, 0, Math.min(buffer.length, size - at), at)
    if (bytesRead === 0) break
    hasher.update(buffer.subarray(0, bytesRead))
    at += bytesRead
  }
  return hasher.digest()
}
