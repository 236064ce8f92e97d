/**
 * Is a folder this revision? Every file is hashed, on all cores; large ones chunk by chunk.
 *
 * Names are compared byte by byte. A symbolic link to a file counts as the file, as with quilt3;
 * one to a folder is not entered. What is no regular file is never read, and is not extra.
 */

import { isUtf8 } from 'node:buffer'
import { type Dirent, lstatSync } from 'node:fs'
import { opendir, readdir, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { BobbinError, compareTreeOrder, type Entry, localError, systemCode, throwIfAborted } from '../model/index.js'
import { chunkCount } from '../model/object-hash.js'
import { concurrently } from '../work/concurrently.js'
import { hashObject } from '../work/hash-object.js'
import { type FileToHash, type HashedFile, withFileToHash } from '../work/jobs.js'
import { Workers } from '../work/workers.js'

export interface VerifyOptions {
  /** Is there an entry of this key? Without it the keys are kept in memory. */
  readonly isKnown?: ((key: string) => boolean) | undefined
  readonly onProgress?: ((progress: { readonly files: number; readonly bytes: number }) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

export interface VerifiedFolder {
  /** No file is changed, missing or extra. */
  readonly ok: boolean
  /** Of the package. */
  readonly files: number
  readonly bytes: number
  /** Keys, in tree order. */
  readonly changed: string[]
  readonly missing: string[]
  /** Files that are there and not in the package. Bytes that are not UTF-8 are written as `\xNN`. */
  readonly extra: string[]
}

/** A job is worth its hand-over from this many bytes on; fewer files than this are not worth one batch. */
const BATCH_BYTES = 8 * 2 ** 20
const BATCH_FILES = 64
/** So that a thread never waits for its next batch. */
const BATCHES_A_THREAD = 3

/** Throws INVALID_ARGUMENT when there is no such folder, INTERRUPTED, and what reading a file throws. */
export async function verifyFolder(
  entries: Iterable<Entry> | AsyncIterable<Entry>,
  dir: string,
  options: VerifyOptions = {},
): Promise<VerifiedFolder> {
  await (await openFolder(dir)).close()
  // Nothing is fetched, so the time-out is never used.
  const workers = new Workers({ ioTimeoutMs: 1, offline: true })
  try {
    const verification = new Verification(workers, dir, options)
    const atOnce = BATCHES_A_THREAD * workers.threads
    await concurrently(verification.batches(entries), atOnce, options.signal, (batch, signal) =>
      verification.check(batch, signal),
    )
    return await verification.result()
  } finally {
    await workers.close()
  }
}

async function openFolder(dir: string) {
  try {
    return await opendir(dir)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) {
      throw new BobbinError('INVALID_ARGUMENT', `no such folder: ${dir}`, { cause: error })
    }
    throw localError(`list ${dir}`, error)
  }
}

class Verification {
  readonly #changed: string[] = []
  readonly #missing: string[] = []
  readonly #keys: Set<string> | undefined
  readonly #isKnown: (key: string) => boolean
  readonly #folders = new Map<string, boolean>([['.', true]])
  #files = 0
  #bytes = 0
  #filesDone = 0
  #bytesDone = 0

  constructor(
    private readonly workers: Workers,
    private readonly dir: string,
    private readonly options: VerifyOptions,
  ) {
    const keys = options.isKnown === undefined ? new Set<string>() : undefined
    this.#keys = keys
    this.#isKnown = options.isKnown ?? (key => keys!.has(key))
  }

  /** Small files go together; a file of several chunks goes alone. */
  async *batches(entries: Iterable<Entry> | AsyncIterable<Entry>): AsyncGenerator<readonly Entry[]> {
    let batch: Entry[] = []
    let bytes = 0
    for await (const entry of entries) {
      this.#keys?.add(entry.key)
      this.#files++
      this.#bytes += entry.size
      if (isSplit(entry)) {
        yield [entry]
        continue
      }
      batch.push(entry)
      bytes += entry.size
      if (batch.length < BATCH_FILES && bytes < BATCH_BYTES) continue
      yield batch
      batch = []
      bytes = 0
    }
    if (batch.length > 0) yield batch
  }

  async check(batch: readonly Entry[], signal: AbortSignal): Promise<void> {
    const reachable = batch.filter(entry => {
      if (this.#isFolder(dirname(entry.key))) return true
      this.#count(entry, 'missing')
      return false
    })
    const [first] = reachable
    if (first === undefined) return
    if (isSplit(first)) {
      this.#count(first, await this.#hashSplit(first, signal))
      return
    }
    const files = reachable.map(
      ({ key, size, hash }): FileToHash => ({ path: join(this.dir, key), size, hashType: hash.type }),
    )
    const found = await this.workers.hashFiles({ kind: 'hash-files', files }, { signal })
    reachable.forEach((entry, i) => {
      this.#count(entry, found[i]!)
    })
  }

  #hashSplit({ key, size, hash }: Entry, signal: AbortSignal): Promise<HashedFile> {
    return withFileToHash({ path: join(this.dir, key), size }, async fd => {
      let reported = 0
      const onBytes = (bytes: number) => {
        this.#bytesDone += bytes - reported
        reported = bytes
        this.#progress()
      }
      const hex = await hashObject(this.workers, fd, hash.type, size, { signal, onBytes })
      // It is counted as a whole in a moment.
      this.#bytesDone -= reported
      return { hex }
    })
  }

  #count(entry: Entry, found: HashedFile): void {
    if (found === 'missing') this.#missing.push(entry.key)
    else if (found === 'different' || found.hex !== entry.hash.hex) this.#changed.push(entry.key)
    this.#filesDone++
    this.#bytesDone += entry.size
    this.#progress()
  }

  #progress(): void {
    this.options.onProgress?.({ files: this.#filesDone, bytes: this.#bytesDone })
  }

  /** Is it a folder, all the way, without a symbolic link? Of the package's folders. */
  #isFolder(key: string): boolean {
    const known = this.#folders.get(key)
    if (known !== undefined) return known
    let isFolder = this.#isFolder(dirname(key))
    if (isFolder) {
      try {
        isFolder = lstatSync(join(this.dir, key)).isDirectory()
      } catch {
        isFolder = false
      }
    }
    // One a folder of the package; a flat million of folders is forgotten now and then.
    if (this.#folders.size > 100_000) this.#folders.clear()
    this.#folders.set('.', true)
    this.#folders.set(key, isFolder)
    return isFolder
  }

  async result(): Promise<VerifiedFolder> {
    const extra: string[] = []
    await this.#findExtra(Buffer.from(this.dir), '', extra)
    const [changed, missing] = [this.#changed, this.#missing].map(inTreeOrder)
    return {
      ok: changed!.length + missing!.length + extra.length === 0,
      files: this.#files,
      bytes: this.#bytes,
      changed: changed!,
      missing: missing!,
      extra: inTreeOrder(extra),
    }
  }

  async #findExtra(path: Buffer, prefix: string, extra: string[]): Promise<void> {
    throwIfAborted(this.options.signal)
    const names = await readdir(path, { withFileTypes: true, encoding: 'buffer' }).catch(error => {
      throw localError(`list ${path}`, error)
    })
    for (const entry of names) {
      const name = entry.name as unknown as Buffer
      const isText = isUtf8(name)
      const key = prefix + (isText ? name.toString('utf8') : escapeBytes(name))
      const own = Buffer.concat([path, SLASH, name])
      if (entry.isDirectory()) await this.#findExtra(own, `${key}/`, extra)
      else if ((!isText || !this.#isKnown(key)) && (await isFile(own, entry))) extra.push(key)
    }
  }
}

/** Python's `is_file`: a link to a file is one, too. */
async function isFile(path: Buffer, entry: Dirent | Dirent<Buffer>): Promise<boolean> {
  if (!entry.isSymbolicLink()) return entry.isFile()
  try {
    return (await stat(path)).isFile()
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes(systemCode(error) ?? '')) return false
    throw localError(`look at ${path}`, error)
  }
}

const SLASH = Buffer.from('/')

function escapeBytes(name: Buffer): string {
  return name.toString('latin1').replace(/[^\x20-\x7e]/g, c => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`)
}

function inTreeOrder(keys: readonly string[]): string[] {
  return keys
    .map(key => ({ key, bytes: Buffer.from(key) }))
    .sort((a, b) => compareTreeOrder(a.bytes, b.bytes))
    .map(({ key }) => key)
}

function isSplit({ size, hash }: Entry): boolean {
  return hash.type === 'sha2-256-chunked' && chunkCount(size) > 1
}
