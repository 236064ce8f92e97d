/**
 * The `RegistryWriter` of a registry in a folder.
 *
 * What is written is written below `.quilt/.bobbin-…` first, and gets its name by link(2), which never replaces
 * anything, or by rename(2), where it shall. A folder keeps no versions: when other bytes lie at an object's key
 * (an earlier revision's), the new ones go to the key of their hash.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, constants, openSync } from 'node:fs'
import { copyFile, link, mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { hostname } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  BobbinError,
  type FileKey,
  type FileToStore,
  formatPhysicalKey,
  localError,
  type ObjectPlace,
  type PhysicalKey,
  type RegistryWriter,
  type StoredFile,
  type StoreFileOptions,
  systemCode,
  throwIfAborted,
} from '../../model/index.js'
import { createObjectHasher } from '../../quilt/object-hash.js'
import { hashFile } from '../../store/hash-file.js'
import { flock, isAlive } from '../../store/index.js'
import { textToStore } from './text.js'

/** Somebody may put a file where we have just seen none, and take it away again; not for ever. */
const TRIES_MAX = 10
const LOCK_WAIT_MS = 20

export class FolderWriter implements RegistryWriter {
  readonly #quilt: string
  /** A folder for files under way. */
  #temporary: Promise<string> | undefined
  #files = 0

  constructor(
    root: string,
    private readonly ioTimeoutMs: number,
  ) {
    this.#quilt = join(root, '.quilt')
  }

  find(key: PhysicalKey): Promise<PhysicalKey | undefined> {
    return findFile(asFileKey(key))
  }

  async store(file: FileToStore, place: ObjectPlace, options: StoreFileOptions = {}): Promise<StoredFile> {
    const { path } = asFileKey(place.preferred)
    const found = await this.#storeAt(path, file, options)
    if (found !== undefined) return found
    const { path: other } = asFileKey(place.byHash(await file.hash(options.signal)))
    const stored = await this.#storeAt(other, file, options)
    if (stored !== undefined) return stored
    throw new BobbinError('LOCAL_IO', `${other} is not what its name says: it is damaged, remove it and push again`)
  }

  /** `undefined`: something else lies there, or in its way. */
  async #storeAt(path: string, file: FileToStore, options: StoreFileOptions): Promise<StoredFile | undefined> {
    for (let tries = 1; tries <= TRIES_MAX; tries++) {
      const present = await look(path)
      if (present === 'other') return undefined
      if (present !== 'nothing') return await reuse(path, present.size, file, options)
      const temporary = await this.#temporaryPath()
      try {
        const hex = await write(temporary, file, options)
        if (!(await makeParents(path))) return undefined
        if (await linkTo(temporary, path)) return storedFile(path, hex, false)
      } finally {
        await rm(temporary, { force: true })
      }
    }
    throw new BobbinError('BUSY', `others write and remove ${path} all the time: try again`)
  }

  async put(key: PhysicalKey, file: FileToStore, options: StoreFileOptions = {}): Promise<void> {
    const { path } = asFileKey(key)
    const temporary = await this.#temporaryPath()
    try {
      // A pointer must not survive a crash that its manifest does not.
      await write(temporary, file, { ...options, isSynced: true })
      if (!(await makeParents(path))) {
        throw new BobbinError('NOT_A_DIRECTORY', `a file is in the way of the folder ${dirname(path)}`)
      }
      await rename(temporary, path).catch(error => Promise.reject(localError(`write ${path}`, error)))
    } finally {
      await rm(temporary, { force: true })
    }
  }

  async replace(key: PhysicalKey, text: string, expected: string | undefined, signal?: AbortSignal): Promise<boolean> {
    const { path } = asFileKey(key)
    return await this.#locked(signal, async () => {
      const present = await readFile(path, 'utf8').catch(error => {
        if (systemCode(error) === 'ENOENT') return undefined
        throw localError(`read ${path}`, error)
      })
      if (present?.trim() === text) return true
      if (present?.trim() !== expected) return false
      await this.put(key, textToStore(text), { signal })
      return true
    })
  }

  /** One writer at a time compares and writes. The lock does not lie among the pointers, where clients look for tags. */
  async #locked<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    const lock = join(this.#quilt, '.bobbin-lock')
    await makeFolder(this.#quilt)
    let fd: number
    try {
      fd = openSync(lock, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o666)
    } catch (error) {
      throw localError(`open ${lock}`, error)
    }
    try {
      const deadline = performance.now() + this.ioTimeoutMs
      while (!flock(fd, 'exclusive')) {
        throwIfAborted(signal)
        if (performance.now() > deadline) throw new BobbinError('BUSY', `others hold ${lock}: try again`)
        await sleep(LOCK_WAIT_MS * (0.5 + Math.random()))
      }
      return await work()
    } finally {
      closeSync(fd)
    }
  }

  async #temporaryPath(): Promise<string> {
    this.#temporary ??= makeTemporary(this.#quilt)
    return join(await this.#temporary, String(++this.#files))
  }

  async close(): Promise<void> {
    const path = await this.#temporary?.catch(() => undefined)
    if (path !== undefined) await rm(path, { recursive: true, force: true })
  }
}

export async function findFile(key: FileKey): Promise<FileKey | undefined> {
  const present = await look(key.path)
  return typeof present === 'object' ? key : undefined
}

function asFileKey(key: PhysicalKey): FileKey {
  if (key.kind === 'file') return key
  throw new BobbinError('INTERNAL', `not a file: ${formatPhysicalKey(key)}`)
}

/** `other`: no regular file, or something on the way to it is no folder. */
async function look(path: string): Promise<{ readonly size: number } | 'nothing' | 'other'> {
  try {
    const stats = await stat(path)
    return stats.isFile() ? { size: stats.size } : 'other'
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return 'nothing'
    if (['ENOTDIR', 'ELOOP', 'ENAMETOOLONG'].includes(systemCode(error) ?? '')) return 'other'
    throw localError(`look at ${path}`, error)
  }
}

async function reuse(
  path: string,
  size: number,
  file: FileToStore,
  { signal, onBytes }: StoreFileOptions,
): Promise<StoredFile | undefined> {
  if (size !== file.size) return undefined
  const [wanted, found] = [await file.hash(signal), await hashAt(path, size, signal)]
  onBytes?.(size)
  return wanted === found ? storedFile(path, wanted, true) : undefined
}

async function hashAt(path: string, size: number, signal: AbortSignal | undefined): Promise<string> {
  const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch(error =>
    Promise.reject(localError(`read ${path}`, error)),
  )
  try {
    return await hashFile(handle.fd, 'sha2-256-chunked', size, signal)
  } finally {
    await handle.close()
  }
}

/** Copies and hashes at the same time; the hash (hex). */
async function write(
  path: string,
  file: FileToStore,
  { signal, onBytes, isSynced }: StoreFileOptions & { readonly isSynced?: boolean },
): Promise<string> {
  const hasher = await createObjectHasher('sha2-256-chunked', file.size)
  const handle = await open(path, 'wx', 0o666).catch(error => Promise.reject(localError(`write ${path}`, error)))
  try {
    let at = 0
    for await (const chunk of file.read()) {
      throwIfAborted(signal)
      hasher.update(chunk)
      await handle.writeFile(chunk).catch(error => Promise.reject(localError(`write ${path}`, error)))
      at += chunk.length
      onBytes?.(at)
    }
    if (isSynced) await handle.datasync().catch(error => Promise.reject(localError(`write ${path}`, error)))
    return hasher.digest()
  } finally {
    await handle.close()
  }
}

/** False: a file lies where a folder has to be. */
async function makeParents(path: string): Promise<boolean> {
  try {
    await makeFolder(dirname(path))
    return true
  } catch (error) {
    if (error instanceof BobbinError && ['EEXIST', 'ENOTDIR'].includes(systemCode(error.cause) ?? '')) return false
    throw error
  }
}

async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true }).catch(error => Promise.reject(localError(`make the folder ${path}`, error)))
}

/** False: something has that name already. */
async function linkTo(temporary: string, path: string): Promise<boolean> {
  try {
    await link(temporary, path)
    return true
  } catch (error) {
    const code = systemCode(error) ?? ''
    if (code === 'EEXIST') return false
    // File systems without hard links: a copy is not seen whole at once, but it replaces nothing.
    if (['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(code)) return await copyTo(temporary, path)
    throw localError(`write ${path}`, error)
  }
}

async function copyTo(temporary: string, path: string): Promise<boolean> {
  try {
    await copyFile(temporary, path, constants.COPYFILE_EXCL)
    return true
  } catch (error) {
    if (systemCode(error) === 'EEXIST') return false
    throw localError(`write ${path}`, error)
  }
}

function storedFile(path: string, hex: string, isReused: boolean): StoredFile {
  return { physicalKey: { kind: 'file', path }, hash: { type: 'sha2-256-chunked', hex }, isReused }
}

/** A new folder, after removing those of this machine's dead processes. Others may share the disk, so its name has ours. */
async function makeTemporary(quilt: string): Promise<string> {
  const machine = hostname().replace(/[^A-Za-z0-9.]/g, '')
  const path = join(quilt, `.bobbin-${machine}-${process.pid}-${randomBytes(6).toString('hex')}`)
  await makeFolder(quilt)
  try {
    for (const name of await readdir(quilt)) {
      const match = /^\.bobbin-([A-Za-z0-9.]*)-(\d+)-[0-9a-f]{12}$/.exec(name)
      if (match === null || match[1] !== machine || isAlive(Number(match[2]))) continue
      await rm(join(quilt, name), { recursive: true, force: true })
    }
    await mkdir(path, { mode: 0o700 })
    return path
  } catch (error) {
    throw localError(`write ${quilt}`, error)
  }
}
