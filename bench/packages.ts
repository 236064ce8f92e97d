/**
 * Packages of many files, written as fast as the machine can: their bytes by the C reader, their hashes
 * here, their registry in a folder. `adopt` puts the files into a cache as its objects, by hard links:
 * then the files in their folder, and the objects behind every mount, are the same files on the same disk.
 */
import { createHash } from 'node:crypto'
import { closeSync, linkSync, mkdirSync, openSync, readSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { chunkBytes, combineChunkDigests } from '../daemon/model/object-hash.js'
import { type ObjectId, objectPath } from '../daemon/store/layout.js'
import { manifestText, type Row, topHashOf } from '../test/support/manifest.js'
import type { ReaderFile } from './reader.js'

export interface WrittenPackage {
  readonly name: string
  readonly registry: string
  readonly topHash: string
}

export interface HashedFile extends ReaderFile {
  /** `sha2-256-chunked`, hex. */
  readonly hex: string
}

/** Hashes files that are in a folder. */
export function hashFiles(folder: string, files: readonly ReaderFile[]): HashedFile[] {
  const buffer = Buffer.allocUnsafe(8 * 2 ** 20)
  return files.map(file => {
    const fd = openSync(join(folder, file.path), 'r')
    const chunks: Buffer[] = []
    if (chunkBytes(file.size) !== buffer.length) throw new Error(`${file.path} is too large`)
    for (let at = 0; at < file.size; at += buffer.length) {
      const n = readSync(fd, buffer, 0, buffer.length, at)
      chunks.push(createHash('sha256').update(buffer.subarray(0, n)).digest())
    }
    closeSync(fd)
    return { ...file, hex: combineChunkDigests(chunks) }
  })
}

/** For packages of which only the names are looked at: a hash for each that no object has. */
export function unhashed(files: readonly ReaderFile[]): HashedFile[] {
  return files.map(file => ({ ...file, hex: createHash('sha256').update(`${file.seed}`).digest('hex') }))
}

/** `physicalKey`: where the bytes of a file are, by its path. */
export function writePackage(
  registryFolder: string,
  name: string,
  files: readonly HashedFile[],
  physicalKey: (path: string) => string,
): WrittenPackage {
  const rows = files.map(
    ({ path, size, hex }): Row => ({
      logical_key: path,
      physical_keys: [physicalKey(path)],
      size,
      hash: { type: 'sha2-256-chunked', value: Buffer.from(hex, 'hex').toString('base64') },
      meta: {},
    }),
  )
  const topHash = topHashOf(rows)
  writeRevision(registryFolder, name, topHash, manifestPath => writeFileSync(manifestPath, manifestText(rows)))
  return { name, registry: `file://${registryFolder}`, topHash }
}

/** The files of a registry around a manifest that somebody else writes. */
export function writeRevision(
  registryFolder: string,
  name: string,
  topHash: string,
  writeManifest: (path: string) => void,
): void {
  const manifestPath = join(registryFolder, '.quilt/packages', topHash)
  const pointers = join(registryFolder, '.quilt/named_packages', name)
  for (const folder of [dirname(manifestPath), pointers]) mkdirSync(folder, { recursive: true })
  writeManifest(manifestPath)
  for (const pointer of ['1700000000', 'latest']) writeFileSync(join(pointers, pointer), topHash)
}

/** Before a daemon has the cache: it will find the objects, and check each at its first use. */
export function adopt(cacheDir: string, folder: string, files: readonly HashedFile[]): void {
  for (const { path, hex } of files) {
    const object = objectPath(cacheDir, `sha2-256-chunked/${hex}` as ObjectId)
    mkdirSync(dirname(object), { recursive: true, mode: 0o750 })
    linkSync(join(folder, path), object)
  }
}
