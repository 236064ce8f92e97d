/**
 * The three hash types of Quilt objects, computed while bytes stream by.
 *
 * Sources: quilt3's checksums module; vectors `object_hashes`, `chunk_size_rule`, `crc64nvme`.
 * SHA-256 is node:crypto (8 × hash-wasm, measured); hash-wasm serves CRC64NVME.
 */
import { createHash, type Hash } from 'node:crypto'
import type { IHasher } from 'hash-wasm'
import type { HashType, ObjectHash } from './entry.js'

const CHUNK_BYTES_MIN = 8 * 2 ** 20
const CHUNKS_MAX = 10_000

/** Bytes in each chunk of an object of `size` bytes: 8 MiB, doubled while there would be over 10,000 of them. */
export function chunkBytes(size: number): number {
  let bytes = CHUNK_BYTES_MIN
  while (Math.ceil(size / bytes) > CHUNKS_MAX) bytes *= 2
  return bytes
}

/** How many chunks an object of `size` bytes has; an empty one has none. */
export function chunkCount(size: number): number {
  return Math.ceil(size / chunkBytes(size))
}

/** The `sha2-256-chunked` value (hex) of an object, from the SHA-256 of each of its chunks, in order. */
export function combineChunkDigests(digests: readonly Uint8Array[]): string {
  const hash = createHash('sha256')
  for (const digest of digests) hash.update(digest)
  return hash.digest('hex')
}

export interface ObjectHasher {
  update(bytes: Uint8Array): void
  /** Lower-case hex, as in `ObjectHash.hex`. May be called once. */
  digest(): string
}

/** A hasher for one object of `size` bytes. Only CRC64NVME needs the await, to load its WebAssembly. */
export async function createObjectHasher(type: HashType, size: number): Promise<ObjectHasher> {
  switch (type) {
    case 'SHA256':
      return new Sha256Hasher()
    case 'sha2-256-chunked':
      return new ChunkedHasher(chunkBytes(size))
    case 'CRC64NVME': {
      // Most packages have none, and loading it takes 10 ms of every start, of threads too.
      const { createCRC64 } = await import('hash-wasm')
      return new Crc64Hasher(await createCRC64(CRC64NVME_POLYNOMIAL))
    }
    default:
      return type satisfies never
  }
}

class Sha256Hasher implements ObjectHasher {
  readonly #hash = createHash('sha256')
  update(bytes: Uint8Array): void {
    this.#hash.update(bytes)
  }
  digest(): string {
    return this.#hash.digest('hex')
  }
}

class ChunkedHasher implements ObjectHasher {
  readonly #outer = createHash('sha256')
  #inner: Hash | undefined
  #left: number
  constructor(private readonly chunkBytes: number) {
    this.#left = chunkBytes
  }
  update(bytes: Uint8Array): void {
    let rest = bytes
    while (rest.length > 0) {
      const part = rest.length <= this.#left ? rest : rest.subarray(0, this.#left)
      this.#inner ??= createHash('sha256')
      this.#inner.update(part)
      this.#left -= part.length
      if (this.#left === 0) this.#endChunk()
      rest = rest.subarray(part.length)
    }
  }
  #endChunk(): void {
    if (this.#inner) this.#outer.update(this.#inner.digest())
    this.#inner = undefined
    this.#left = this.chunkBytes
  }
  digest(): string {
    this.#endChunk()
    return this.#outer.digest('hex')
  }
}

/** CRC-64/NVME, reflected; hash-wasm takes the polynomial in this form. */
const CRC64NVME_POLYNOMIAL = '9a6c9329ac4bc9b5'

class Crc64Hasher implements ObjectHasher {
  constructor(private readonly crc: IHasher) {}
  update(bytes: Uint8Array): void {
    this.crc.update(bytes)
  }
  digest(): string {
    return this.crc.digest('hex')
  }
}

/** The hash as a manifest spells it: hex for SHA256, base64 for the other two. */
export function formatManifestHash(hash: ObjectHash): string {
  return hash.type === 'SHA256' ? hash.hex : Buffer.from(hash.hex, 'hex').toString('base64')
}
