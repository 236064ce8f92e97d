/**
 * The folder that a package is installed into. Nothing is written outside it: a component that is
 * a symbolic link is refused, and files are written in a hidden folder of their own, then renamed.
 */
import { lstatSync, mkdirSync, readdirSync, realpathSync, rmSync, type Stats } from 'node:fs'
import { dirname, join } from 'node:path'
import { BobbinError, type LogicalKey, localError, systemCode } from '../model/index.js'
import { makeFolderDurablySync, refuseForeignFolder, syncFolder } from '../store/index.js'
import { isLeftover, temporaryFolderName } from '../store/temporary-folders.js'
import { concurrently } from '../work/concurrently.js'

/** Folders whose nature is remembered; beyond that it is looked up again. */
const FOLDERS_MAX = 100_000
/** Folders that wait for their fsync; then it is their turn. */
const TOUCHED_MAX = 10_000
const SYNCS_AT_ONCE = 4

export class Destination {
  readonly root: string
  readonly #temporary: string
  readonly #folders = new Set<string>()
  /** In which a name was made since they were synced. */
  #touched = new Set<string>()
  #files = 0

  /** Makes the folder, and removes what dead processes have left in it. Throws ACCESS_DENIED for root in the folder of somebody else. */
  constructor(dir: string) {
    refuseForeignFolder(dir, 'the folder', 'name a folder that is not there yet')
    try {
      makeFolderDurablySync(dir)
      this.root = realpathSync(dir)
      removeLeftovers(this.root)
      this.#temporary = join(this.root, temporaryFolderName())
      mkdirSync(this.#temporary, { mode: 0o700 })
    } catch (error) {
      if (['EEXIST', 'ENOTDIR'].includes(systemCode(error) ?? '')) {
        throw new BobbinError('NOT_A_DIRECTORY', `not a folder: ${dir}`, { cause: error })
      }
      throw localError(`make the folder ${dir}`, error)
    }
  }

  /** A path for a file under way. */
  temporaryPath(): string {
    return join(this.#temporary, String(++this.#files))
  }

  /**
   * Where the file of a key belongs, after making its folders, and what is there now: nothing or a
   * regular file. Throws NOT_A_DIRECTORY, IS_A_DIRECTORY or LOCAL_IO for what is in the way.
   */
  prepare(key: LogicalKey): { readonly path: string; readonly present: Stats | undefined } {
    const path = join(this.root, key)
    this.#makeFolders(key)
    let present: Stats | undefined
    try {
      present = lstatSync(path, { throwIfNoEntry: false })
    } catch (error) {
      throw localError(`look at ${path}`, error)
    }
    if (present === undefined) return { path, present }
    if (present.isFile()) return { path, present }
    if (present.isDirectory()) {
      throw new BobbinError('IS_A_DIRECTORY', `a folder is in the way of the file ${path}: move it away`)
    }
    const what = present.isSymbolicLink() ? 'a symbolic link' : 'no regular file'
    throw new BobbinError('LOCAL_IO', `${path} is there and is ${what}: move it away`)
  }

  #makeFolders(key: string): void {
    const parent = dirname(key)
    if (parent === '.' || this.#folders.has(parent)) return
    this.#makeFolders(parent)
    const path = join(this.root, parent)
    try {
      mkdirSync(path)
      this.#touched.add(dirname(path))
    } catch (error) {
      if (systemCode(error) !== 'EEXIST') throw localError(`make the folder ${path}`, error)
      const present = lstatSync(path)
      if (!present.isDirectory()) {
        const what = present.isSymbolicLink() ? 'a symbolic link, and nothing is written through it' : 'no folder'
        throw new BobbinError('NOT_A_DIRECTORY', `${path} is ${what}: move it away`)
      }
    }
    if (this.#folders.size >= FOLDERS_MAX) this.#folders.clear()
    this.#folders.add(parent)
  }

  /** A name was put in place. */
  async touched(path: string): Promise<void> {
    this.#touched.add(dirname(path))
    if (this.#touched.size >= TOUCHED_MAX) await this.sync()
  }

  /** Waits until the disk has all names that were put in place. */
  async sync(): Promise<void> {
    const touched = this.#touched
    this.#touched = new Set()
    try {
      await concurrently(touched, SYNCS_AT_ONCE, undefined, folder => syncFolder(folder))
    } catch (error) {
      throw localError(`write ${this.root}`, error)
    }
  }

  /** Removes what was under way; what is complete stays. */
  close(): void {
    rmSync(this.#temporary, { recursive: true, force: true })
  }
}

function removeLeftovers(root: string): void {
  for (const name of readdirSync(root)) {
    if (isLeftover(name)) rmSync(join(root, name), { recursive: true, force: true })
  }
}
