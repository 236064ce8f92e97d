/**
 * A package, or a part of it, as verified copies in a folder.
 *
 * A file that is there already and hashes right is kept, so an installation that was interrupted
 * goes on where it was; one that hashes wrong is replaced. Each file appears by a rename, complete, when the
 * disk has its bytes; when all is done, the disk has the names as well.
 */
import { renameSync, utimesSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { BobbinError, type Entry, formatBytes, hasCode, type Log, localError, silentLog } from '../model/index.js'
import { atPresentPlace } from '../package/moved-objects.js'
import type { OpenedPackage } from '../package/package-cache.js'
import type { SourceConfig } from '../source/index.js'
import { concurrently } from '../work/concurrently.js'
import { Workers } from '../work/workers.js'
import { Destination } from './destination.js'
import { materialize } from './materialize.js'

export interface InstallOptions {
  readonly sourceConfig: SourceConfig
  /** The package that the entries are of: where an object has moved, its manifest is asked again. */
  readonly opened?: OpenedPackage | undefined
  /** Whose objects may be used. */
  readonly cacheDir?: string | undefined
  /** The files' time of last change, Unix, milliseconds. Default: now. */
  readonly timestampMs?: number | undefined
  readonly onProgress?: ((progress: InstallProgress) => void) | undefined
  readonly signal?: AbortSignal | undefined
  readonly log?: Log
}

export interface InstallProgress {
  /** Complete. */
  readonly files: number
  /** Fetched, copied or found right, also of files that are not complete yet. */
  readonly bytes: number
}

export interface Installed {
  readonly files: number
  readonly bytes: number
  /** Files that came from the registry. */
  readonly fetched: number
  /** Files that were there already, or in the cache. */
  readonly reused: number
}

/** Enough to keep the link busy with small files; each holds one open file. */
const FILES_AT_ONCE = 32

/**
 * Throws what fetching throws, with the entry's key; STORE_FULL when the disk is; NOT_A_DIRECTORY
 * and IS_A_DIRECTORY for what is in the way. What is complete stays, nothing else does.
 */
export async function installPackage(
  entries: Iterable<Entry> | AsyncIterable<Entry>,
  dir: string,
  options: InstallOptions,
): Promise<Installed> {
  const workers = new Workers(options.sourceConfig)
  try {
    const destination = new Destination(dir)
    try {
      const installation = new Installation(workers, destination, options)
      await concurrently(entries, FILES_AT_ONCE, options.signal, (entry, signal) => installation.add(entry, signal))
      await destination.sync()
      return installation.result()
    } finally {
      destination.close()
    }
  } finally {
    await workers.close()
  }
}

class Installation {
  #files = 0
  #bytes = 0
  #fetched = 0
  #bytesUnderWay = 0

  constructor(
    private readonly workers: Workers,
    private readonly destination: Destination,
    private readonly options: InstallOptions,
  ) {}

  result(): Installed {
    return { files: this.#files, bytes: this.#bytes, fetched: this.#fetched, reused: this.#files - this.#fetched }
  }

  async add(entry: Entry, signal: AbortSignal): Promise<void> {
    const { path, present } = this.destination.prepare(entry.key)
    if (present?.size === entry.size && (await this.#isRight(entry, path, signal))) {
      // Whoever wrote it may not have waited for the disk.
      await syncFile(path)
      await this.destination.touched(path)
      this.#complete(entry, 'kept')
      return
    }
    let reported = 0
    const report = (bytes: number) => {
      this.#bytesUnderWay += bytes - reported
      reported = bytes
    }
    const onBytes = (bytes: number) => {
      report(bytes)
      this.#progress()
    }
    try {
      const from = await this.#write(entry, path, signal, this.options.onProgress && onBytes)
      report(0)
      this.#complete(entry, from)
    } catch (error) {
      report(0)
      throw this.#asFullDisk(entry, error)
    }
  }

  async #isRight({ size, hash }: Entry, path: string, signal: AbortSignal): Promise<boolean> {
    const files = [{ path, size, hashType: hash.type }]
    const [found] = await this.workers.hashFiles({ kind: 'hash-files', files }, { signal })
    return typeof found === 'object' && found.hex === hash.hex
  }

  async #write(
    entry: Entry,
    path: string,
    signal: AbortSignal,
    onBytes: ((bytes: number) => void) | undefined,
  ): Promise<'cache' | 'source'> {
    const { cacheDir, opened, timestampMs, log } = this.options
    const temporary = this.destination.temporaryPath()
    const fetchFrom = (place: Entry) =>
      materialize(this.workers, place, temporary, {
        cacheDir,
        isDurable: true,
        label: place.key,
        log: log ?? silentLog,
        signal,
        onBytes,
      })
    const from = await (opened === undefined ? fetchFrom(entry) : atPresentPlace(opened, entry, fetchFrom))
    try {
      if (timestampMs !== undefined) utimesSync(temporary, timestampMs / 1000, timestampMs / 1000)
      renameSync(temporary, path)
      await this.destination.touched(path)
    } catch (error) {
      throw localError(`write ${path}`, error)
    }
    return from
  }

  #complete(entry: Entry, from: 'kept' | 'cache' | 'source'): void {
    this.#files++
    this.#bytes += entry.size
    if (from === 'source') this.#fetched++
    this.#progress()
  }

  #progress(): void {
    this.options.onProgress?.({ files: this.#files, bytes: this.#bytes + this.#bytesUnderWay })
  }

  #asFullDisk(entry: Entry, error: unknown): unknown {
    if (!hasCode(error, 'STORE_FULL')) return error
    return new BobbinError(
      'STORE_FULL',
      `${entry.key} (${formatBytes(entry.size)}): the disk of ${this.destination.root} is full; ` +
        `make room and run it again: the files that are complete stay`,
      { cause: error },
    )
  }
}

async function syncFile(path: string): Promise<void> {
  try {
    const file = await open(path, 'r')
    try {
      await file.datasync()
    } finally {
      await file.close()
    }
  } catch (error) {
    throw localError(`write ${path}`, error)
  }
}
