/**
 * The `Source` of `file://` addresses: a registry in a folder, and objects that lie on this machine.
 *
 * What is not a regular file is never read: a manifest may name a fifo or a device, and opening one
 * could block for ever (hence O_NONBLOCK, then fstat). A file system that does not answer, such as
 * NFS without its server, is given up after the I/O time-out; its system call stays behind in the
 * thread pool, which nothing can help. One that answers with an error that may pass (EIO and ESTALE of NFS) is asked again until then,
 * by path, since a handle that went stale stays so.
 */
import { constants, type Dirent, type Stats } from 'node:fs'
import { type FileHandle, open, readdir, readlink, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import {
  BobbinError,
  type FileKey,
  formatDuration,
  formatPhysicalKey,
  type ListedKey,
  localError,
  type PhysicalKey,
  type Reading,
  type ReadOptions,
  type Source,
  systemCode,
  throwIfAborted,
} from '../model/index.js'
import { isBelowOne } from '../registry/served.js'
import { Progress } from './progress.js'
import { whilePassing } from './retry.js'

/** Large enough that the thread pool's round trip is small beside the copy, small enough to have many. */
const READ_BYTES = 512 * 1024
/** Linux's own, which Node.js does not name: a descriptor of a place, with which nothing can be read. */
const O_PATH = 0o10000000

export class FileSource implements Source {
  constructor(private readonly ioTimeoutMs: number) {}

  async read(key: PhysicalKey, options: ReadOptions = {}): Promise<Reading> {
    const { path } = asFileKey(key)
    throwIfAborted(options.signal)
    const progress = new Progress(this.ioTimeoutMs)
    const opened = await this.#retried(path, progress, options.signal, () => this.#opened(path, options.within))
    try {
      throwIfAborted(options.signal)
      const { size, mtime } = opened.stats
      const start = Math.min(options.range?.start ?? 0, size)
      const end = Math.min(start + (options.range?.length ?? Infinity), size)
      return {
        chunks: this.#chunks(opened, path, start, end, progress, options),
        objectBytes: size,
        lastModified: mtime,
      }
    } catch (error) {
      await this.#close(opened.handle, path)
      throw readError(path, error)
    }
  }

  async #retried<T>(
    what: string,
    progress: Progress,
    signal: AbortSignal | undefined,
    attempt: () => Promise<T>,
  ): Promise<T> {
    try {
      // What the system said, for the words about it.
      const asked = () => attempt().catch(error => Promise.reject(mayPass(error) ? systemError(error) : error))
      return await whilePassing(what, progress, signal, { attempt: asked, mayPass })
    } catch (error) {
      throw readError(what, error)
    }
  }

  async #opened(path: string, within: readonly string[] | undefined): Promise<OpenedFile> {
    const handle = within === undefined ? await this.#open(path) : await this.#openWithin(path, within)
    try {
      const stats = await this.#bounded(handle.stat(), `stat ${path}`)
      if (!stats.isFile()) throw new BobbinError('OBJECT_GONE', `not a regular file: ${path}`)
      return { handle, stats }
    } catch (error) {
      await this.#close(handle, path)
      throw readError(path, error)
    }
  }

  /**
   * Asks the kernel where the file is before it is opened for reading: a descriptor stays what it is, while a path can be
   * another file's from one call to the next, so whoever exchanges a link meanwhile wins nothing. What lies outside is
   * not even opened, since that alone does something where it is a device.
   */
  async #openWithin(path: string, folders: readonly string[]): Promise<FileHandle> {
    const place = await this.#open(path, O_PATH)
    try {
      const held = `/proc/self/fd/${place.fd}`
      const found = await this.#bounded(readlink(held), `look up ${path}`)
      if (!isBelowOne(found, folders))
        throw new BobbinError('ACCESS_DENIED', `${path} is ${found}, outside of what is served (${folders.join(', ')})`)
      return await this.#open(held)
    } catch (error) {
      throw readError(path, error)
    } finally {
      await this.#close(place, path)
    }
  }

  async #open(
    path: string,
    flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY,
  ): Promise<FileHandle> {
    const opening = open(path, flags)
    try {
      return await this.#bounded(opening, `open ${path}`)
    } catch (error) {
      // Where it opens after all, long after we gave up, the handle still has to be closed.
      opening.then(handle => handle.close()).catch(() => {})
      throw readError(path, error)
    }
  }

  async *#chunks(
    first: OpenedFile,
    path: string,
    start: number,
    end: number,
    progress: Progress,
    { signal, within }: ReadOptions,
  ): AsyncGenerator<Uint8Array> {
    let { handle } = first
    let isBroken = false
    try {
      for (let at = start; at < end; ) {
        throwIfAborted(signal)
        progress.touch()
        const chunk = await this.#retried(path, progress, signal, async () => {
          if (isBroken) {
            const again = await this.#opened(path, within)
            await this.#close(handle, path)
            handle = again.handle
            requireSame(path, first.stats, again.stats)
          }
          isBroken = true
          // A buffer of its own each time: the consumer may keep the chunk.
          const buffer = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, end - at))
          const { bytesRead } = await this.#bounded(handle.read(buffer, 0, buffer.length, at), `read ${path}`)
          isBroken = false
          return buffer.subarray(0, bytesRead)
        })
        if (chunk.length === 0) {
          throw new BobbinError('UPSTREAM_UNAVAILABLE', `${path} was cut to ${at} bytes while it was read`)
        }
        at += chunk.length
        yield chunk
      }
    } catch (error) {
      throw readError(path, error)
    } finally {
      await this.#close(handle, path)
    }
  }

  /** Closing waits for reads that are under way, so it could hang where they do. */
  async #close(handle: FileHandle, path: string): Promise<void> {
    await this.#bounded(handle.close(), `close ${path}`).catch(() => {})
  }

  async *list(
    folder: PhysicalKey,
    options: { readonly namePrefix?: string; readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<ListedKey> {
    const { path } = asFileKey(folder)
    throwIfAborted(options.signal)
    const found = await this.#retried(path, new Progress(this.ioTimeoutMs), options.signal, () => this.#listed(path))
    const prefix = options.namePrefix ?? ''
    const entries: { sortKey: Buffer; name: string; isFolder: boolean }[] = []
    for (const entry of found) {
      const { name } = entry
      if (!name.startsWith(prefix)) continue
      const isFolder = entry.isSymbolicLink() ? await isDirectory(join(path, name)) : entry.isDirectory()
      entries.push({ sortKey: Buffer.from(isFolder ? `${name}/` : name), name, isFolder })
    }
    entries.sort((a, b) => Buffer.compare(a.sortKey, b.sortKey))
    for (const { name, isFolder } of entries) {
      throwIfAborted(options.signal)
      // The time would cost a stat a file, and nobody asks for it.
      yield { name, isFolder, lastModified: undefined }
    }
  }

  /** A missing folder has nothing in it. */
  async #listed(path: string): Promise<Dirent[]> {
    try {
      return await this.#bounded(readdir(path, { withFileTypes: true }), `list ${path}`)
    } catch (error) {
      if (isMissing(error)) return []
      throw error
    }
  }

  #bounded<T>(promise: Promise<T>, what: string): Promise<T> {
    let timer: NodeJS.Timeout | undefined
    const timeout = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        reject(
          new BobbinError('UPSTREAM_UNAVAILABLE', `cannot ${what}: no answer in ${formatDuration(this.ioTimeoutMs)}`),
        )
      }, this.ioTimeoutMs)
    })
    return Promise.race([promise, timeout]).finally(() => clearTimeout(timer))
  }
}

interface OpenedFile {
  readonly handle: FileHandle
  readonly stats: Stats
}

/** A file that was exchanged while its file system was away would give half of each. */
function requireSame(path: string, before: Stats, now: Stats): void {
  if (before.size === now.size && before.mtimeMs === now.mtimeMs) return
  throw new BobbinError('UPSTREAM_UNAVAILABLE', `${path} was changed while it was read`)
}

/**
 * What a network's file system says of a server that is away or has started again; EIO is also a disk's, which does not get better,
 * and costs the I/O time-out then.
 */
const PASSING_CODES = [
  'EIO',
  'EREMOTEIO',
  'ESTALE',
  'ETIMEDOUT',
  'ECONNREFUSED',
  'ECONNRESET',
  'EHOSTDOWN',
  'EHOSTUNREACH',
  'ENETDOWN',
  'ENETUNREACH',
  'ENOTCONN',
]

function mayPass(error: unknown): boolean {
  return PASSING_CODES.includes(systemCode(systemError(error)) ?? '')
}

function systemError(error: unknown): unknown {
  return error instanceof BobbinError ? error.cause : error
}

function asFileKey(key: PhysicalKey): FileKey {
  if (key.kind === 'file') return key
  throw new BobbinError('INTERNAL', `not a file: ${formatPhysicalKey(key)}`)
}

async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory()
  } catch {
    return false
  }
}

const MISSING_CODES = ['ENOENT', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG', 'ENXIO', 'ENODEV', 'ERR_INVALID_ARG_VALUE']

function isMissing(error: unknown): boolean {
  return MISSING_CODES.includes(systemCode(error) ?? '')
}

function readError(path: string, error: unknown): BobbinError {
  if (error instanceof BobbinError) return error
  if (isMissing(error)) {
    const reason = systemCode(error) === 'ENOENT' ? 'no such file' : `cannot be a file (${systemCode(error)})`
    return new BobbinError('OBJECT_GONE', `${reason}: ${JSON.stringify(join(dirname(path), basename(path)))}`, {
      cause: error,
    })
  }
  if (mayPass(error)) {
    return new BobbinError('UPSTREAM_UNAVAILABLE', `cannot read ${path}: ${(error as Error).message}`, { cause: error })
  }
  return localError(`read ${path}`, error)
}
