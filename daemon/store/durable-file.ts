/**
 * Files that are there after a power cut: whole, or as they were before.
 *
 * A rename alone promises nothing: the name may reach the disk before the bytes, and the folder's change may reach it never. So
 * the bytes are fsynced under a temporary name, the file is renamed, and then its folder is fsynced. When one of these calls has
 * returned, a power cut takes nothing of it away; when it throws, the file of that name is what it was, or is the new one.
 * A name beside the file, `<path>.new`, is used meanwhile: the caller sees to it that nobody else writes the same file.
 *
 * Writers throw LOCAL_IO, STORE_FULL or ACCESS_DENIED; what is done to folders throws the system's error, since the caller knows what
 * for it was. An fsync costs what the disk takes for it, 0.1 to 30 ms.
 */
import { closeSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { type FileHandle, mkdir, open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { localError, systemCode } from '../model/index.js'

export interface DurableOptions {
  /** Of what is made. */
  readonly mode?: number
}

const PLAIN_MODE = 0o644

/** Puts a file in its place, instead of what lay there. */
export async function writeDurably(
  path: string,
  content: string | Uint8Array,
  options: DurableOptions = {},
): Promise<void> {
  const file = await DurableFile.create(path, options)
  try {
    await file.write(content)
    await file.commit()
  } finally {
    await file.discard()
  }
}

/** The same, for those who cannot wait. */
export function writeDurablySync(
  path: string,
  content: string | Uint8Array,
  { mode = PLAIN_MODE }: DurableOptions = {},
): void {
  const temporary = `${path}.new`
  try {
    const fd = openSync(temporary, 'w', mode)
    try {
      const bytes = typeof content === 'string' ? Buffer.from(content) : content
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done)
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    renameSync(temporary, path)
    syncFolderSync(dirname(path))
  } catch (error) {
    // On a full disk half of it would be in the way.
    rmSync(temporary, { force: true })
    throw localError(`write ${path}`, error)
  }
}

/** A file that is written piece by piece and comes into its place at the end. Its owner calls `discard` in any case. */
export class DurableFile {
  #isOpen = true
  #isInPlace = false

  private constructor(
    private readonly path: string,
    private readonly handle: FileHandle,
  ) {}

  static async create(path: string, { mode = PLAIN_MODE }: DurableOptions = {}): Promise<DurableFile> {
    try {
      return new DurableFile(path, await open(`${path}.new`, 'w', mode))
    } catch (error) {
      throw localError(`write ${path}`, error)
    }
  }

  async write(content: string | Uint8Array): Promise<void> {
    try {
      // Unlike FileHandle.write, this one writes all of it.
      await this.handle.writeFile(content)
    } catch (error) {
      throw localError(`write ${this.path}`, error)
    }
  }

  async commit(): Promise<void> {
    try {
      await this.handle.sync()
      await this.#close()
      await rename(`${this.path}.new`, this.path)
      this.#isInPlace = true
      await syncFolder(dirname(this.path))
    } catch (error) {
      throw localError(`write ${this.path}`, error)
    }
  }

  /** Leaves nothing of one that was not committed. */
  async discard(): Promise<void> {
    if (this.#isInPlace) return
    await this.#close()
    await rm(`${this.path}.new`, { force: true })
  }

  async #close(): Promise<void> {
    if (!this.#isOpen) return
    this.#isOpen = false
    await this.handle.close()
  }
}

/** Makes a folder and those above it that are missing; all of them are there after a power cut. */
export async function makeFolderDurably(path: string, options: DurableOptions = {}): Promise<void> {
  const first = await mkdir(path, { recursive: true, ...options })
  for (const folder of parentsOf(path, first)) await syncFolder(folder)
}

export function makeFolderDurablySync(path: string, options: DurableOptions = {}): void {
  const first = mkdirSync(path, { recursive: true, ...options })
  for (const folder of parentsOf(path, first)) syncFolderSync(folder)
}

/** Folders in which a name was made, when `first` was the first one of `path` that was missing. */
function parentsOf(path: string, first: string | undefined): string[] {
  if (first === undefined) return []
  const parents = [dirname(path)]
  while (parents[0] !== dirname(first)) parents.unshift(dirname(parents[0]!))
  return parents
}

/** What somebody else has written to a file by now is there after a power cut. Throws the system's error. */
export async function syncFile(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** What was made, renamed or removed in a folder is so after a power cut. */
export async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } catch (error) {
    if (!isUnknown(error)) throw error
  } finally {
    await handle.close()
  }
}

export function syncFolderSync(path: string): void {
  const fd = openSync(path, 'r')
  try {
    fsyncSync(fd)
  } catch (error) {
    if (!isUnknown(error)) throw error
  } finally {
    closeSync(fd)
  }
}

/** Some network filesystems know no fsync of a folder: their server does what it does. */
function isUnknown(error: unknown): boolean {
  return ['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS'].includes(systemCode(error) ?? '')
}
