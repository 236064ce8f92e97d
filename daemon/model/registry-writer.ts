/**
 * The port to where revisions are written. Implementations: `daemon/writer/folder.ts` and `s3.ts`.
 *
 * Contract, for every method:
 *  - what is written appears whole, by its final name, or not at all.
 *  - errors are BobbinErrors: REGISTRY_NOT_FOUND (no such bucket), ACCESS_DENIED, UPSTREAM_UNAVAILABLE (after
 *    the retries of the writer, which is the only layer that retries), STORE_FULL, LOCAL_IO, INTERRUPTED.
 *  - nothing that an earlier revision may point to is ever written over, except by `put`.
 */
import type { HashType, ObjectHash } from './entry.js'
import type { PhysicalKey, S3Key } from './physical-key.js'

/** Bytes that will not change while they are stored, or whoever reads them is told. */
export interface FileToStore {
  /** Bytes. */
  readonly size: number
  /** From the start, each time. Throws LOCAL_IO, at the end at the latest, when they are not what they were. */
  read(): AsyncIterable<Uint8Array>
  /** `sha2-256-chunked`, hex. */
  hash(signal?: AbortSignal): Promise<string>
}

/** Where an object goes. */
export interface ObjectPlace {
  readonly preferred: PhysicalKey
  /** Where it goes when other bytes lie at the preferred key, and are not kept as a version of it. */
  byHash(hex: string): PhysicalKey
}

export interface StoredFile {
  /** With its version, where there is one. */
  readonly physicalKey: PhysicalKey
  /** Of the bytes that were stored: `sha2-256-chunked`. */
  readonly hash: ObjectHash
  /** These bytes were there already. */
  readonly isReused: boolean
}

export interface StoreFileOptions {
  readonly signal?: AbortSignal | undefined
  /** Bytes so far. */
  readonly onBytes?: ((bytes: number) => void) | undefined
}

/** An object of a bucket, as its server tells of it. */
export interface ServerObject {
  /** With its version, where there is one. */
  readonly physicalKey: S3Key
  /** Bytes. */
  readonly size: number
  /** `sha2-256-chunked`, where the checksums that the server keeps prove it. */
  readonly hash: ObjectHash | undefined
}

export interface CopyOptions extends StoreFileOptions {
  /** Reads an object and gives its hash (hex): asked where checksums do not prove a copy. */
  readonly read: (key: S3Key, size: number, type: HashType) => Promise<string>
}

export interface RegistryWriter {
  /** The full address of what lies there now, with its version where there is one; `undefined`: nothing. */
  find(key: PhysicalKey, signal?: AbortSignal): Promise<PhysicalKey | undefined>
  /** Stores an object, unless its bytes are there already. */
  store(file: FileToStore, place: ObjectPlace, options?: StoreFileOptions): Promise<StoredFile>
  /**
   * Stores an object that lies in S3 already without its bytes passing through this machine, unless they are there. What
   * was copied has been checked against `hash`, if one is given. `undefined`: the server cannot do it, or these credentials may not.
   */
  copy(
    from: S3Key,
    object: { readonly size: number; readonly hash?: ObjectHash | undefined },
    place: ObjectPlace,
    options: CopyOptions,
  ): Promise<StoredFile | undefined>
  /** Of an object in any bucket. Throws OBJECT_GONE. */
  look(key: S3Key, signal?: AbortSignal): Promise<ServerObject>
  /** Every object whose key starts so, in any bucket, in any order. */
  list(
    bucket: string,
    prefix: string,
    signal?: AbortSignal,
  ): AsyncIterable<{ readonly key: string; readonly size: number }>
  /** Removes a pointer; whether it was there does not matter. */
  remove(key: PhysicalKey, signal?: AbortSignal): Promise<void>
  /** Writes a file at this very key, whatever lies there. */
  put(key: PhysicalKey, file: FileToStore, options?: StoreFileOptions): Promise<void>
  /**
   * Writes a short text if what lies there now is `expected` (`undefined`: nothing; spaces around it do not count).
   * False: it is something else. True also when the text was there already. Of several that do this at the same
   * time with one `expected`, one is told true, where the registry can compare and write in one step.
   */
  replace(key: PhysicalKey, text: string, expected: string | undefined, signal?: AbortSignal): Promise<boolean>
  /** Removes what is half done, and drops idle connections. */
  close(): Promise<void>
}
