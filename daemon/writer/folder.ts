/**
 * The `RegistryWriter` of a registry in a folder.
 *
 * What is written is written below `.quilt/.bobbin-…` first, and gets its name by link(2), which never replaces
 * anything, or by rename(2), where it shall. A folder keeps no versions: when other bytes lie at an object's key
 * (an earlier revision's), the new ones go to the key of their hash.
 *
 * The power may go at any moment, so bytes are synced before they get their name, names of objects before a manifest
 * has them, and a manifest's name before a pointer has it.
 */
import { closeSync, constants, openSync } from 'node:fs'
import { copyFile, link, mkdir, open, readdir, readFile, rename, rm, rmdir, stat } from 'node:fs/promises'
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
} from '../model/index.js'
import { createObjectHasher } from '../model/object-hash.js'
import { hashFile } from '../store/hash-file.js'
import { flock } from '../store/index.js'
import { isLeftover, temporaryFolderName } from '../store/temporary-folders.js'
import { textToStore } from './text.js'

/** Somebody may put a file where we have just seen none, and take it away again; not for ever. */
const TRIES_MAX = 10
const LOCK_WAIT_MS = 20
/** Folders with names that are not synced yet; a file each may have one of its own. */
const UNSYNCED_MAX = 4096

export class FolderWriter implements Pick<RegistryWriter, 'find' | 'store' | 'put' | 'replace' | 'remove' | 'close'> {
  readonly #quilt: string
  /** A folder for files under way. */
  #temporary: Promise<string> | undefined
  #files = 0
  #unsynced = new Set<string>()

  constructor(
    private readonly root: string,
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
      if (present !== 'nothing') {
        const reused = await reuse(path, present.size, file, options)
        if (reused !== undefined) await this.#named(path)
        return reused
      }
      const temporary = await this.#temporaryPath()
      try {
        const hex = await write(temporary, file, options)
        if (!(await makeParents(path))) return undefined
        if (await linkTo(temporary, path)) {
          await this.#named(path)
          return storedFile(path, hex, false)
        }
      } finally {
        await rm(temporary, { force: true })
      }
    }
    throw new BobbinError('BUSY', `others keep writing and removing ${path}: try again`)
  }

  async put(key: PhysicalKey, file: FileToStore, options: StoreFileOptions = {}): Promise<void> {
    const { path } = asFileKey(key)
    await this.#syncNames()
    const temporary = await this.#temporaryPath()
    try {
      await write(temporary, file, options)
      if (!(await makeParents(path))) {
        throw new BobbinError('NOT_A_DIRECTORY', `a file is in the way of the folder ${dirname(path)}`)
      }
      await rename(temporary, path).catch(error => Promise.reject(localError(`write ${path}`, error)))
    } finally {
      await rm(temporary, { force: true })
    }
    await this.#named(path)
    await this.#syncNames()
  }

  async remove(key: PhysicalKey): Promise<void> {
    const { path } = asFileKey(key)
    await rm(path, { force: true }).catch(error => Promise.reject(localError(`remove ${path}`, error)))
    await this.#named(path)
    await this.#syncNames()
    // quilt3 lists a package for every folder of pointers, so a folder without any goes, too.
    for (const folder of [dirname(path), dirname(dirname(path))]) {
      try {
        await rmdir(folder)
      } catch {
        return
      }
    }
  }

  /** A name that has to last; so have those of the folders above it, which may be as new. */
  async #named(path: string, above = dirname(this.root)): Promise<void> {
    for (let folder = dirname(path); !this.#unsynced.has(folder); folder = dirname(folder)) {
      this.#unsynced.add(folder)
      if (folder === above || folder === '/') break
    }
    if (this.#unsynced.size > UNSYNCED_MAX) await this.#syncNames()
  }

  async #syncNames(): Promise<void> {
    const folders = this.#unsynced
    this.#unsynced = new Set()
    for (const folder of folders) await syncNamesIn(folder)
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
    this.#temporary ??= this.#makeTemporary()
    return join(await this.#temporary, String(++this.#files))
  }

  async #makeTemporary(): Promise<string> {
    const first = await makeFolder(this.#quilt)
    if (first !== undefined) await this.#named(join(this.#quilt, 'any'), dirname(first))
    return await makeTemporary(this.#quilt)
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
    const hex = await hashFile(handle.fd, 'sha2-256-chunked', size, { signal })
    // Whoever wrote it may have left that to the kernel.
    await handle.datasync().catch(error => Promise.reject(localError(`write ${path}`, error)))
    return hex
  } finally {
    await handle.close()
  }
}

/** Copies and hashes at the same time; the hash (hex). */
async function write(path: string, file: FileToStore, { signal, onBytes }: StoreFileOptions): Promise<string> {
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
    await handle.datasync().catch(error => Promise.reject(localError(`write ${path}`, error)))
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

/** The topmost folder that was made; `undefined`: all were there. */
async function makeFolder(path: string): Promise<string | undefined> {
  return await mkdir(path, { recursive: true }).catch(error =>
    Promise.reject(localError(`make the folder ${path}`, error)),
  )
}

/** A file system that cannot sync a folder is left to its own promises, and so is a folder that may not be opened. */
async function syncNamesIn(folder: string): Promise<void> {
  try {
    await sync(folder)
  } catch (error) {
    // A folder that was removed has no names that could last; the folder above it is synced by itself.
    if (systemCode(error) === 'ENOENT') return
    const isImpossible = ['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EACCES', 'EPERM'].includes(
      systemCode(error) ?? '',
    )
    if (!isImpossible) throw localError(`write ${folder}`, error)
  }
}

async function sync(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
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
    await sync(path)
    return true
  } catch (error) {
    if (systemCode(error) === 'EEXIST') return false
    throw localError(`write ${path}`, error)
  }
}

function storedFile(path: string, hex: string, isReused: boolean): StoredFile {
  return { physicalKey: { kind: 'file', path }, hash: { type: 'sha2-256-chunked', hex }, isReused }
}

/** A new folder, after removing those of this machine's dead processes. */
async function makeTemporary(quilt: string): Promise<string> {
  const path = join(quilt, temporaryFolderName())
  try {
    for (const name of await readdir(quilt)) {
      if (isLeftover(name)) await rm(join(quilt, name), { recursive: true, force: true })
    }
    await mkdir(path, { mode: 0o700 })
    return path
  } catch (error) {
    throw localError(`write ${quilt}`, error)
  }
}
