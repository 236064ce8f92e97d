/**
 * The `Source` of `file://` addresses: a registry in a folder, and objects that lie on this machine.
 *
 * What is not a regular file is never read: a manifest may name a fifo or a device, and opening one
 * could block for ever (hence O_NONBLOCK, then fstat). A file system that does not answer, such as
 * NFS without its server, is given up after the I/O time-out; its system call stays behind in the
 * thread pool, which nothing can help.
 */
import { constants, type Dirent } from 'node:fs'
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

/** Large enough that the thread pool's round trip is small beside the copy, small enough to have many. */
const READ_BYTES = 512 * 1024
/** Linux's own, which Node.js does not name: a descriptor of a place, with which nothing can be read. */
const O_PATH = 0o10000000

export class FileSource implements Source {
  constructor(private readonly ioTimeoutMs: number) {}

  async read(key: PhysicalKey, options: ReadOptions = {}): Promise<Reading> {
    const { path } = asFileKey(key)
    throwIfAborted(options.signal)
    const { within } = options
    const handle = within === undefined ? await this.#open(path) : await this.#openWithin(path, within)
    try {
      const stats = await this.#bounded(handle.stat(), `stat ${path}`)
      if (!stats.isFile()) throw new BobbinError('OBJECT_GONE', `not a regular file: ${path}`)
      throwIfAborted(options.signal)
      const start = Math.min(options.range?.start ?? 0, stats.size)
      const end = Math.min(start + (options.range?.length ?? Infinity), stats.size)
      return {
        chunks: this.#chunks(handle, path, start, end, options.signal),
        objectBytes: stats.size,
        lastModified: stats.mtime,
      }
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
    handle: FileHandle,
    path: string,
    start: number,
    end: number,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Uint8Array> {
    try {
      for (let at = start; at < end; ) {
        throwIfAborted(signal)
        // A buffer of its own each time: the consumer may keep the chunk.
        const buffer = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, end - at))
        const { bytesRead } = await this.#bounded(handle.read(buffer, 0, buffer.length, at), `read ${path}`)
        if (bytesRead === 0) {
          throw new BobbinError('UPSTREAM_UNAVAILABLE', `${path} was cut to ${at} bytes while it was read`)
        }
        at += bytesRead
        yield buffer.subarray(0, bytesRead)
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
    let found: Dirent[]
    try {
      found = await this.#bounded(readdir(path, { withFileTypes: true }), `list ${path}`)
    } catch (error) {
      if (isMissing(error)) return
      throw readError(path, error)
    }
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
  if (['EIO', 'ESTALE', 'ETIMEDOUT', 'EHOSTDOWN'].includes(systemCode(error) ?? '')) {
    return new BobbinError('UPSTREAM_UNAVAILABLE', `cannot read ${path}: ${(error as Error).message}`, { cause: error })
  }
  return localError(`read ${path}`, error)
}
