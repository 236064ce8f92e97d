/**
 * Code that a command on this machine may import and that lies outside of the recorded repository: folders on PYTHONPATH, and packages
 * that are installed as links to their sources. A folder in a repository is recorded as the run's own code is: commit, tree, and
 * the diff between them. Any other one gets a hash over all its files, and an archive gets that of its bytes.
 */
import { createHash } from 'node:crypto'
import { createReadStream, type Dirent, realpathSync, statSync } from 'node:fs'
import { readdir, readlink, stat } from 'node:fs/promises'
import { delimiter, join, relative, resolve } from 'node:path'
import { BobbinError, hasCode, throwIfAborted } from '../../daemon/model/index.js'
import { fileSha256 } from '../record/ledger.js'
import type { RunFacts } from '../record/run-facts.js'
import { isIgnored } from './code.js'
import { checkCode, type FoundCode } from './preflight.js'

export type SourceTree = NonNullable<RunFacts['sourceTrees']>[number]

/** More is an installation, and hashing it would keep the command waiting: the record says that it has no hash. */
const FILES_MAX = 50_000
const BYTES_MAX = 2 * 2 ** 30
/** What Python makes of sources by itself. */
const COMPILED = /^__pycache__$|\.py[co]$/

export interface FoundTrees {
  readonly trees: readonly SourceTree[]
  /** By the name of the record's file. */
  readonly diffs: ReadonlyMap<string, Buffer>
}

/** Throws INTERRUPTED. */
export async function lookAtSourceTrees(options: {
  readonly pythonPath: string | undefined
  readonly editable: readonly string[]
  readonly cwd: string
  /** The run's own, which the record has. */
  readonly repository: string | undefined
  /** Data, which the record has. */
  readonly mounts: readonly string[]
  readonly signal: AbortSignal
}): Promise<FoundTrees> {
  const { pythonPath = '', editable, cwd, repository, mounts, signal } = options
  // An empty place on PYTHONPATH is the folder that the command runs in.
  const listed = pythonPath === '' ? [] : pythonPath.split(delimiter).map(entry => resolve(cwd, entry))
  const isKnown = async (path: string) => {
    if (mounts.some(mount => isBelow(path, realPath(mount) ?? mount))) return true
    return repository !== undefined && isBelow(path, realPath(repository) ?? repository) && !(await isIgnored(path))
  }
  const diffs = new Map<string, Buffer>()
  const trees: SourceTree[] = []
  const seen = new Set<string>()
  for (const [from, paths] of [['PYTHONPATH', listed] as const, ['editable', editable] as const]) {
    for (const path of paths) {
      const real = realPath(path)
      // Python passes over what is not there, too.
      if (real === undefined || seen.has(real) || (await isKnown(real))) continue
      seen.add(real)
      throwIfAborted(signal)
      const { tree, diff } = await identify(real, signal)
      const name = `tree-${trees.length}.diff`
      if (diff !== undefined) diffs.set(name, diff)
      trees.push({ path, from, ...tree, ...(diff !== undefined && { diff: name }) })
    }
  }
  return { trees, diffs }
}

type Identified = Pick<SourceTree, 'code' | 'sha256' | 'unhashed'>

async function identify(
  path: string,
  signal: AbortSignal,
): Promise<{ readonly tree: Identified; readonly diff?: Buffer }> {
  try {
    if (statSync(path).isFile()) return { tree: { sha256: (await fileSha256(path))! } }
    const found = (await isIgnored(path)) ? undefined : await codeIn(path)
    if (found !== undefined)
      return { tree: { code: found.identity }, ...(found.diff !== undefined && { diff: found.diff }) }
    return { tree: { sha256: await hashTree(path, signal) } }
  } catch (error) {
    if (hasCode(error, 'INTERRUPTED')) throw error
    return { tree: { unhashed: error instanceof Error ? error.message : String(error) } }
  }
}

/** Undefined: it is in no repository, or in one without a commit. */
async function codeIn(path: string): Promise<FoundCode | undefined> {
  try {
    return await checkCode(path, {})
  } catch (error) {
    if (hasCode(error, 'INVALID_ARGUMENT')) return undefined
    throw error
  }
}

/**
 * SHA-256 of a line per file and link, sorted by path in bytes: `<kind> <SHA-256 of its bytes, or of the link's target> <path>\n`,
 * where the kind is `x` for what may be executed, `l` for a link and `f` otherwise. What Python compiles is left out.
 */
export async function hashTree(folder: string, signal?: AbortSignal): Promise<string> {
  const lines: (readonly [path: string, line: string])[] = []
  let bytes = 0
  for await (const { path, entry } of entriesBelow(folder, '')) {
    throwIfAborted(signal)
    const { size, mode } = entry.isFile() ? await stat(join(folder, path)) : { size: 0, mode: 0 }
    bytes += size
    if (lines.length >= FILES_MAX || bytes > BYTES_MAX)
      throw new BobbinError('INVALID_ARGUMENT', `it has over ${FILES_MAX} files or ${BYTES_MAX} bytes`)
    const sha256 = entry.isFile()
      ? await hashOf(join(folder, path), signal)
      : textHash(await readlink(join(folder, path)))
    lines.push([path, `${entry.isSymbolicLink() ? 'l' : mode & 0o111 ? 'x' : 'f'} ${sha256} ${path}\n`])
  }
  const hash = createHash('sha256')
  const byPath = (a: readonly [string, string], b: readonly [string, string]) =>
    Buffer.compare(Buffer.from(a[0]), Buffer.from(b[0]))
  for (const [, line] of lines.sort(byPath)) hash.update(line)
  return hash.digest('hex')
}

async function* entriesBelow(
  folder: string,
  below: string,
): AsyncGenerator<{ readonly path: string; readonly entry: Dirent }> {
  for (const entry of await readdir(join(folder, below), { withFileTypes: true })) {
    const path = below === '' ? entry.name : `${below}/${entry.name}`
    if (COMPILED.test(entry.name)) continue
    if (entry.isDirectory()) yield* entriesBelow(folder, path)
    else if (entry.isFile() || entry.isSymbolicLink()) yield { path, entry }
  }
}

async function hashOf(path: string, signal: AbortSignal | undefined): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path, signal === undefined ? {} : { signal })) hash.update(chunk as Buffer)
  return hash.digest('hex')
}

function textHash(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

function realPath(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch {
    return undefined
  }
}

function isBelow(path: string, folder: string): boolean {
  const way = relative(folder, path)
  return way === '' || (!way.startsWith('../') && way !== '..')
}
