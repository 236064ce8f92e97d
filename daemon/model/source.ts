/**
 * The port to where bytes come from. Implementations: `daemon/source/file.ts` and `s3.ts`.
 *
 * Contract, for every method:
 *  - nothing that is returned has been verified; callers hash it.
 *  - errors are BobbinErrors: REGISTRY_NOT_FOUND (no bucket or folder), OBJECT_GONE (no such key or
 *    version), ACCESS_DENIED (with what to do about it), UPSTREAM_UNAVAILABLE (after the retries of
 *    the source, which is the only layer that retries the network), INTERRUPTED.
 *  - no progress for the I/O time-out is UPSTREAM_UNAVAILABLE, however long the whole takes.
 */
import type { PhysicalKey } from './physical-key.js'

export interface ByteRange {
  /** First byte. */
  readonly start: number
  /** Bytes; the source may return fewer only when the object ends before. */
  readonly length: number
}

export interface Reading {
  /** Chunks of any length. Ending early (a dead connection) throws; it never just stops. */
  readonly chunks: AsyncIterable<Uint8Array>
  /** The whole object's size, bytes, as the source states it; `undefined` when it does not. */
  readonly objectBytes: number | undefined
  readonly lastModified: Date | undefined
  /** A range was asked for, and the server sends the whole object instead: so do the chunks. */
  readonly isWhole?: boolean | undefined
}

export interface ListedKey {
  /** The last path component; for a folder without its final slash. */
  readonly name: string
  readonly isFolder: boolean
  readonly lastModified: Date | undefined
}

export interface ReadOptions {
  /** Default: the whole object. */
  readonly range?: ByteRange | undefined
  readonly signal?: AbortSignal | undefined
  /**
   * Absolute paths: what was opened has to lie below one of them, whatever links led to it, else ACCESS_DENIED. Nothing
   * of it is read then. Concerns files alone; `undefined`: anywhere.
   */
  readonly within?: readonly string[] | undefined
}

export interface Source {
  /** Opens an object, or a range of it. */
  read(key: PhysicalKey, options?: ReadOptions): Promise<Reading>
  /**
   * What lies directly below a folder (an S3 prefix that ends in `/`, or a directory), in the
   * byte order of the names (a folder's counts with its final slash, as in S3), lazily, page by
   * page. A missing folder lists nothing; a missing bucket throws REGISTRY_NOT_FOUND. `namePrefix`
   * narrows to names that start so.
   */
  list(
    folder: PhysicalKey,
    options?: { readonly namePrefix?: string; readonly signal?: AbortSignal },
  ): AsyncIterable<ListedKey>
}
