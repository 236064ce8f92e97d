/**
 * What the SHA-256 that a server keeps of an object says about its `sha2-256-chunked`.
 *
 * A whole object's checksum is base64. One that was uploaded in parts has the hash of the parts' hashes, and `-` and their
 * number: that is the manifest's hash if the parts were cut as chunks are, which has to be known from elsewhere.
 */
import { createHash } from 'node:crypto'
import { chunkCount, combineChunkDigests } from '../model/object-hash.js'

/** `undefined`: it says nothing. `arePartsChunks`: the parts are known to be cut as chunks are. Hex. */
export function provenHash(sha256: string | undefined, size: number, arePartsChunks: boolean): string | undefined {
  if (size === 0) return combineChunkDigests([])
  const [base64 = '', parts] = (sha256 ?? '').split('-')
  const digest = Buffer.from(base64, 'base64')
  if (digest.length !== 32) return undefined
  if (parts === undefined) {
    return chunkCount(size) === 1 ? createHash('sha256').update(digest).digest('hex') : undefined
  }
  if (Number(parts) !== chunkCount(size)) return undefined
  // One part that is the whole object cannot be cut otherwise.
  return Number(parts) === 1 || arePartsChunks ? digest.toString('hex') : undefined
}
