import type { FileToStore } from '../model/index.js'
import { createObjectHasher } from '../model/object-hash.js'

/** A short text, as a file to store. */
export function textToStore(text: string): FileToStore {
  const bytes = Buffer.from(text)
  return {
    size: bytes.length,
    async *read() {
      yield bytes
    },
    async hash() {
      const hasher = await createObjectHasher('sha2-256-chunked', bytes.length)
      hasher.update(bytes)
      return hasher.digest()
    },
  }
}
