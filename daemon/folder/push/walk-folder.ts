/**
 * The files of a folder as entries of a package, in tree order: what quilt3's `set_dir` would take.
 *
 * A symbolic link to a file is the file; one to a folder is not entered, and a broken one is no file. Neither are fifos,
 * sockets and devices. Packages have no empty folders: they are left out, and named.
 */
import { isUtf8 } from 'node:buffer'
import { constants, type Dirent } from 'node:fs'
import { type FileHandle, open, readdir, realpath, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { BobbinError, keyProblem, type LogicalKey, localError, systemCode, throwIfAborted } from '../../model/index.js'
import { type IgnoreRule, parseQuiltignore } from './quiltignore.js'

/** More than the characters that `parseQuiltignore` takes, each of four bytes. */
const RULES_BYTES_MAX = 2 ** 20

export interface FoundFile {
  readonly key: LogicalKey
  readonly path: string
  /** Bytes, as it was seen. */
  readonly size: number
}

export interface WalkOptions {
  readonly signal?: AbortSignal | undefined
  /** What is there and does not become an entry, unless a rule of `.quiltignore` says so. */
  readonly onSkipped?: ((key: string, reason: string) => void) | undefined
}

/** Throws INVALID_ARGUMENT: no such folder, or a name that no package may have. */
export async function* walkFolder(dir: string, options: WalkOptions = {}): AsyncGenerator<FoundFile> {
  const rules = await readRules(join(dir, '.quiltignore'))
  const isIgnored = parseQuiltignore(rules)
  const root = rules === '' ? '' : (await realpath(dir)).replace(/\/$/, '')
  yield* walk(dir, '', (key, isFolder) => isIgnored(`${root}/${key}`, isFolder), options)
}

/** The folder may be a stranger's: a pipe keeps its reader waiting for ever, and a device has no end. */
async function readRules(path: string): Promise<string> {
  let file: FileHandle | undefined
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const stats = await file.stat()
    if (!stats.isFile()) throw new BobbinError('INVALID_ARGUMENT', `${path} is not a file: move it away`)
    if (stats.size > RULES_BYTES_MAX)
      throw new BobbinError('INVALID_ARGUMENT', `${path} has ${stats.size} bytes, at most ${RULES_BYTES_MAX}`)
    const bytes = await file.readFile()
    if (isUtf8(bytes)) return bytes.toString('utf8')
    throw new BobbinError('INVALID_ARGUMENT', `${path} is not UTF-8: save it as UTF-8`)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return ''
    throw localError(`read ${path}`, error)
  } finally {
    await file?.close()
  }
}

async function* walk(
  folder: string,
  prefix: string,
  isIgnored: IgnoreRule,
  options: WalkOptions,
): AsyncGenerator<FoundFile> {
  const names = await list(folder, prefix)
  if (names.length === 0 && prefix !== '') options.onSkipped?.(prefix, 'an empty folder, and a package has none')
  for (const { name, entry } of names) {
    throwIfAborted(options.signal)
    const key = prefix + name
    const path = join(folder, name)
    if (entry.isDirectory()) {
      if (!isIgnored(key, true)) yield* walk(path, `${key}/`, isIgnored, options)
      continue
    }
    if (isIgnored(key, false)) continue
    const found = await lookAt(path, entry)
    if (typeof found === 'string') {
      options.onSkipped?.(key, found)
      continue
    }
    yield { key: checkedKey(key, path), path, size: found.size }
  }
}

/** Throws INVALID_ARGUMENT for a key that no package may have. */
export function checkedKey(key: string, path: string): LogicalKey {
  const problem = keyProblem(key)
  if (problem === undefined) return key as LogicalKey
  throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(path)} cannot be in a package: ${problem}`)
}

/** In the byte order of the names: by folder, that is tree order. */
async function list(folder: string, prefix: string): Promise<{ readonly name: string; readonly entry: Dirent }[]> {
  const entries = await readdir(folder, { withFileTypes: true, encoding: 'buffer' }).catch(error => {
    const isMissing = ['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')
    if (isMissing && prefix === '') throw new BobbinError('INVALID_ARGUMENT', `no such folder: ${folder}`)
    throw localError(`list ${folder}`, error)
  })
  // TypeScript's types know names as strings only.
  const named = (entries as unknown as (Dirent & { readonly name: unknown })[]).map(entry => ({
    bytes: entry.name as unknown as Buffer,
    entry,
  }))
  return named
    .sort((a, b) => Buffer.compare(a.bytes, b.bytes))
    .map(({ bytes, entry }) => {
      if (isUtf8(bytes)) return { name: bytes.toString('utf8'), entry }
      const shown = JSON.stringify(join(folder, bytes.toString('latin1')))
      throw new BobbinError('INVALID_ARGUMENT', `${shown} cannot be in a package: its name is not UTF-8`)
    })
}

/** What it is, or why it becomes no entry. */
async function lookAt(path: string, entry: Dirent): Promise<{ readonly size: number } | string> {
  try {
    const stats = await stat(path)
    if (stats.isFile()) return { size: stats.size }
    return stats.isDirectory() ? 'a symbolic link to a folder' : 'no regular file'
  } catch (error) {
    if (entry.isSymbolicLink() && ['ENOENT', 'ENOTDIR', 'ELOOP'].includes(systemCode(error) ?? '')) {
      return 'a symbolic link to nothing'
    }
    throw localError(`look at ${path}`, error)
  }
}
