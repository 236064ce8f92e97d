/** Hashes an open file, in this thread; daemon/fetch does the same on all cores. */
import { read } from 'node:fs'
import { promisify } from 'node:util'
import { type HashType, throwIfAborted } from '../model/index.js'
import { createObjectHasher } from '../model/object-hash.js'

export interface HashFileOptions {
  readonly signal?: AbortSignal | undefined
  /** 1: its turn has come. -1: it is over, or waits for others again. */
  readonly onTurn?: ((change: 1 | -1) => void) | undefined
  /** Bytes so far, now and then, when there are more of them. */
  readonly onBytes?: ((bytes: number) => void) | undefined
}

/** The hash (hex) of the `size` bytes of an open file; of fewer, when it is shorter. */
export type HashFile = (fd: number, type: HashType, size: number, options?: HashFileOptions) => Promise<string>

const READ_BYTES = 1 << 20

export const hashFile: HashFile = async (fd, type, size, { signal, onBytes } = {}) => {
  const hasher = await createObjectHasher(type, size)
  const buffer = Buffer.allocUnsafe(Math.min(READ_BYTES, Math.max(size, 1)))
  for (let at = 0; at < size; ) {
    throwIfAborted(signal)
    const { bytesRead } = await promisify(read)(fd, buffer, 0, Math.min(buffer.length, size - at), at)
    if (bytesRead === 0) break
    hasher.update(buffer.subarray(0, bytesRead))
    at += bytesRead
    onBytes?.(at)
  }
  return hasher.digest()
}
