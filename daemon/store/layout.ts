/**
 * Where things are in a cache folder:
 *
 *   owner                                who owns the store (owner.ts)
 *   objects/v1/<hash type>/<2 hex>/<hex> one file an object, mode 0440
 *   objects/v1/journal                   what is known about them (journal.ts)
 *   tmp/<pid>-<random>.object            being written, or being deleted; the owner's alone
 *
 * The folder `v1` is the version of this layout: another one would be another folder.
 */
import { createHash } from 'node:crypto'
import { lstatSync } from 'node:fs'
import { join } from 'node:path'
import { type Brand, formatPhysicalKey, type ObjectSpec } from '../model/index.js'

/** `<hash type>/<hex>`: names an object in the store. */
export type ObjectId = Brand<string, 'ObjectId'>

export const OBJECT_FOLDERS = ['sha256', 'sha2-256-chunked', 'crc64nvme'] as const

const OBJECT_ID = /^(?:sha256|sha2-256-chunked|crc64nvme)\/[0-9a-f]{64}$/

export function isObjectId(text: string): text is ObjectId {
  return OBJECT_ID.test(text)
}

/**
 * A CRC64NVME can be forged, so such an object is private to its physical key, version and size:
 * it is named by the SHA-256 of the three of them, and nobody else's entry will find it.
 */
export function objectId({ physicalKey, size, hash }: ObjectSpec): ObjectId {
  switch (hash.type) {
    case 'SHA256':
      return `sha256/${hash.hex}` as ObjectId
    case 'sha2-256-chunked':
      return `sha2-256-chunked/${hash.hex}` as ObjectId
    case 'CRC64NVME': {
      const text = `${formatPhysicalKey(physicalKey)}\0${size}\0${hash.hex}`
      return `crc64nvme/${createHash('sha256').update(text).digest('hex')}` as ObjectId
    }
    default:
      return hash.type satisfies never
  }
}

export function objectsFolder(cacheDir: string): string {
  return join(cacheDir, 'objects', 'v1')
}

export function temporaryFolder(cacheDir: string): string {
  return join(cacheDir, 'tmp')
}

/**
 * What a name in the temporary folder says of its file; undefined: it is not a name that Bobbin makes. Somebody may have given us
 * a folder with a `tmp` of their own (`--cache .`), and what lies there is not ours to delete, whatever it begins with.
 */
export function parseTemporaryName(name: string): { readonly pid: number; readonly isStores: boolean } | undefined {
  const [, pid, kind] =
    /^(\d+)-[0-9a-f]+\.(object|evicted|(?:manifest|index|cat)(?:\.[0-9a-f]{8}\.\w+)?)$/.exec(name) ?? []
  return pid === undefined ? undefined : { pid: Number(pid), isStores: kind === 'object' || kind === 'evicted' }
}

export function objectPath(cacheDir: string, id: ObjectId): string {
  const slashAt = id.indexOf('/')
  return join(objectsFolder(cacheDir), id.slice(0, slashAt), id.slice(slashAt + 1, slashAt + 3), id.slice(slashAt + 1))
}

/**
 * Where an object is, if it is there: for processes that do not own the store. It may be damaged,
 * and it may be gone in a moment: they hash what they read. Synchronous, because they ask for each
 * of many small files: a hand-over to the thread pool and a thrown ENOENT cost many times the look.
 */
export function findObject(cacheDir: string, spec: ObjectSpec): string | undefined {
  const path = objectPath(cacheDir, objectId(spec))
  try {
    const stats = lstatSync(path, { throwIfNoEntry: false })
    return stats?.isFile() && stats.size === spec.size ? path : undefined
  } catch {
    return undefined
  }
}
