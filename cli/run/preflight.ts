/** What would stop a run, all of it at once and before anything is started: nobody likes to mend one thing a try. */
import { accessSync, constants, existsSync, mkdirSync, readFileSync, rmSync, statfsSync } from 'node:fs'
import { resolve } from 'node:path'
import { BobbinError, type ErrorCode, formatBytes, localError } from '../../daemon/model/index.js'
import { type CodeIdentity, identifyCode } from './code.js'
import { makeTemporaryFolder } from './temporary-folder.js'

/** Gathers errors; what is not one of ours is a bug, and is thrown at once. */
export class Problems {
  readonly #found: BobbinError[] = []

  /** Undefined: it failed, and is remembered. */
  async try<T>(run: () => T | Promise<T>): Promise<T | undefined> {
    try {
      return await run()
    } catch (error) {
      if (!(error instanceof BobbinError) || error.code === 'INTERRUPTED') throw error
      this.#found.push(error)
      return undefined
    }
  }

  get isEmpty(): boolean {
    return this.#found.length === 0
  }

  /** Throws the only one, or one that lists them all under the code of the first. */
  throwIfAny(): void {
    const [first, ...rest] = this.#found
    if (first === undefined) return
    if (rest.length === 0) throw first
    const code: ErrorCode = first.code
    const lines = this.#found.map(({ message }) => `\n  - ${message}`)
    throw new BobbinError(code, `the run cannot start:${lines.join('')}`)
  }
}

export interface FoundCode {
  readonly identity: CodeIdentity
  /** What is not in the commit. */
  readonly diff: Buffer | undefined
}

/** Throws INVALID_ARGUMENT: no repository, no commit, or changes that are not wanted. */
export async function checkCode(
  dir: string,
  {
    requireClean = false,
    outputDir,
  }: { readonly requireClean?: boolean | undefined; readonly outputDir?: string | undefined },
): Promise<FoundCode> {
  const scratch = makeTemporaryFolder('bobbin-git-')
  try {
    const found = await identifyCode(dir, { scratch, outputDir })
    if (found === undefined)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${resolve(dir)} is not in a git repository, so the run could not name its code: git init && git add -A && git commit, or pass --code DIR or --no-code`,
      )
    const { folder, isDirty, untracked } = found.identity
    if (requireClean && isDirty)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${folder} differs from its commit (${untracked} new files; git status shows it): commit the changes, or leave out --require-clean`,
      )
    return found
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** Less room for outputs is worth a word. */
const OUTPUT_BYTES_LOW = 2 ** 30

/** Makes the folder. Throws LOCAL_IO, ACCESS_DENIED, STORE_FULL. */
export function prepareOutputs(dir: string, note: (text: string) => void): string {
  const folder = resolve(dir)
  try {
    mkdirSync(folder, { recursive: true })
    accessSync(folder, constants.W_OK)
    if (isFull(folder))
      throw new BobbinError('STORE_FULL', `no space left on the device of ${folder}: outputs could not be written`)
    const { bavail, bsize } = statfsSync(folder)
    const free = bavail * bsize
    if (free < OUTPUT_BYTES_LOW) note(`bobbin: only ${formatBytes(free)} are free for outputs in ${folder}`)
    return folder
  } catch (error) {
    throw localError(`use ${folder} for outputs`, error)
  }
}

/** Nobody can write there, for want of blocks or of inodes. What cannot be asked is not full. */
export function isFull(folder: string): boolean {
  try {
    const { bavail, files, ffree } = statfsSync(folder)
    return bavail === 0 || (files > 0 && ffree === 0)
  } catch {
    return false
  }
}

/** Throws FUSE_UNAVAILABLE when nothing can be mounted, or containers could not enter what is. */
export function checkMounting(isContainer: boolean): void {
  if (!existsSync('/dev/fuse'))
    throw new BobbinError('FUSE_UNAVAILABLE', 'there is no /dev/fuse here: modprobe fuse (as root)')
  if (!isContainer || process.getuid?.() === 0) return
  let text = ''
  try {
    text = readFileSync('/etc/fuse.conf', 'utf8')
  } catch {
    // Not there is not set.
  }
  if (/^\s*user_allow_other\b/m.test(text)) return
  throw new BobbinError(
    'FUSE_UNAVAILABLE',
    'containers cannot enter the mounts of a user: echo user_allow_other >> /etc/fuse.conf (as root)',
  )
}
