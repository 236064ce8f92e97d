/** What a run has written: every file of its output folder that it made or changed, by its hash. */
import { createHash } from 'node:crypto'
import { type BigIntStats, createReadStream, lstatSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { localError, throwIfAborted } from '../../daemon/model/index.js'

export interface OutputFile {
  /** Below the output folder, with slashes. */
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** Hex. */
  readonly sha256: string
}

export interface HashedOutputs {
  /** In the order of their paths. Links and what is no file are left out: they are not content. */
  readonly files: readonly OutputFile[]
  /** What could not be read: another user's, say. The record is made all the same. */
  readonly problems: readonly string[]
}

/** Files that lay in the output folder before the run, by their paths: each with a text that changes when the file does. */
export type FilesBefore = Readonly<Record<string, string>>

export function lookAtOutputs(folder: string): FilesBefore {
  const before: [string, string][] = []
  for (const { path, stats } of filesBelow(folder, '', [])) before.push([path, stampOf(stats)])
  return Object.fromEntries(before)
}

/** The time of a change cannot be set back, as that of a modification can. */
function stampOf({ ino, size, ctimeNs }: BigIntStats): string {
  return `${ino} ${size} ${ctimeNs}`
}

/** Throws INTERRUPTED: there may be terabytes. */
export async function hashOutputs(
  folder: string,
  before: FilesBefore,
  signal: AbortSignal | undefined,
): Promise<HashedOutputs> {
  const files: OutputFile[] = []
  const problems: string[] = []
  for (const { path, stats } of filesBelow(folder, '', problems)) {
    if (Object.hasOwn(before, path) && before[path] === stampOf(stats)) continue
    try {
      files.push(await hashFile(folder, path, signal))
    } catch (error) {
      throwIfAborted(signal)
      problems.push(unreadable(path, error))
    }
  }
  return { files: files.sort((a, b) => (a.path < b.path ? -1 : 1)), problems }
}

async function hashFile(folder: string, path: string, signal: AbortSignal | undefined): Promise<OutputFile> {
  const hash = createHash('sha256')
  let size = 0
  throwIfAborted(signal)
  for await (const chunk of createReadStream(join(folder, path), { ...(signal !== undefined && { signal }) })) {
    hash.update(chunk as Buffer)
    size += (chunk as Buffer).length
  }
  return { path, size, sha256: hash.digest('hex') }
}

function* filesBelow(
  folder: string,
  below: string,
  problems: string[],
): Generator<{ readonly path: string; readonly stats: BigIntStats }> {
  let names: string[] = []
  try {
    names = readdirSync(join(folder, below))
  } catch (error) {
    problems.push(unreadable(below === '' ? folder : below, error))
  }
  for (const name of names) {
    const path = below === '' ? name : `${below}/${name}`
    const stats = tryLstat(join(folder, path))
    // A name that is no UTF-8 leads nowhere when it is text.
    if (stats === undefined)
      problems.push(`the output ${JSON.stringify(path)} is not in the record: it cannot be looked at`)
    else if (stats.isDirectory()) yield* filesBelow(folder, path, problems)
    else if (stats.isFile()) yield { path, stats }
  }
}

function tryLstat(path: string): BigIntStats | undefined {
  try {
    return lstatSync(path, { bigint: true })
  } catch {
    return undefined
  }
}

function unreadable(path: string, error: unknown): string {
  return `the output ${JSON.stringify(path)} is not in the record: ${localError('read it', error).message}`
}

export interface OutputDifference {
  readonly path: string
  readonly change: 'same' | 'changed' | 'missing' | 'added'
  readonly recorded?: string
  readonly found?: string
}

/** One row a path of either; the order is that of the paths. */
export function compareOutputs(recorded: readonly OutputFile[], found: readonly OutputFile[]): OutputDifference[] {
  const [before, now] = [recorded, found].map(list => new Map(list.map(({ path, sha256 }) => [path, sha256])))
  const paths = [...new Set([...before!.keys(), ...now!.keys()])].sort()
  return paths.map(path => {
    const [was, is] = [before!.get(path), now!.get(path)]
    if (was === undefined) return { path, change: 'added', found: is! }
    if (is === undefined) return { path, change: 'missing', recorded: was }
    return { path, change: was === is ? 'same' : 'changed', recorded: was, found: is }
  })
}

/**
 * The files of a record as they are in the folder now; others there are of no interest. What is no file or has another
 * size is not read, since the record may be anybody's. Throws INTERRUPTED, LOCAL_IO.
 */
export async function compareWithFolder(
  recorded: readonly OutputFile[],
  folder: string,
  signal?: AbortSignal,
): Promise<{ readonly path: string; readonly change: 'same' | 'changed' | 'missing' }[]> {
  const compared: Awaited<ReturnType<typeof compareWithFolder>> = []
  for (const { path, size, sha256 } of recorded) {
    const stats = tryLstat(join(folder, path))
    const isCandidate = stats?.isFile() && stats.size === BigInt(size)
    try {
      const isSame = isCandidate && (await hashFile(folder, path, signal)).sha256 === sha256
      compared.push({ path, change: stats === undefined ? 'missing' : isSame ? 'same' : 'changed' })
    } catch (error) {
      throwIfAborted(signal)
      throw localError(`read ${join(folder, path)}`, error)
    }
  }
  return compared
}
