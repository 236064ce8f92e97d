/**
 * What a cache folder takes beside its objects, by kind. The files are looked at, since other processes write most of
 * them: some thousand at most, and none below `objects`, whose bytes the store knows.
 */
import { lstatSync, type Stats } from 'node:fs'
import { opendir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { systemCode } from '../model/index.js'
import { objectsFolder, parseTemporaryName, temporaryFolder } from './layout.js'
import { isAlive } from './recover.js'

/** Bytes. */
export interface CacheUsage {
  /** Package indexes and their manifests. */
  readonly packages: number
  /** The loader's plans and their tables. */
  readonly plans: number
  /** Of the daemon and the loader, and what was read through mounts. */
  readonly logs: number
  /** The store's journal, notes, uploads under way. */
  readonly other: number
  /** What others than the store are writing. */
  readonly underWay: number
}

export const NO_USAGE: CacheUsage = { packages: 0, plans: 0, logs: 0, other: 0, underWay: 0 }

export function sumOf({ packages, plans, logs, other }: CacheUsage): number {
  return packages + plans + logs + other
}

/** A file of a process that is gone, or in another container, is rubbish when it was not written to for so long. */
const RUBBISH_MS = 10 * 60_000

export async function measureUsage(cacheDir: string): Promise<CacheUsage> {
  const usage = { ...NO_USAGE } as { -readonly [Kind in keyof CacheUsage]: number }
  for await (const file of filesOf(cacheDir, [objectsFolder(cacheDir), temporaryFolder(cacheDir)])) {
    const path = file.path.slice(cacheDir.length + 1)
    // A loader makes its tables where they will lie.
    const pid = /^loader\/v1\/.*\.(\d+)(?:\.new(?:\.inos)?|-\d+)$/.exec(path)?.[1]
    if (pid !== undefined && isRubbish(file, pid)) await rm(file.path, { force: true }).catch(() => {})
    else usage[pid === undefined ? kindOf(path) : 'underWay'] += file.bytes
  }
  for await (const { bytes } of filesOf(objectsFolder(cacheDir), 'flat')) usage.other += bytes
  for await (const file of filesOf(temporaryFolder(cacheDir), 'flat')) {
    const temporary = parseTemporaryName(file.name)
    // The store's own: reserved by size, or evicted.
    if (temporary?.isStores) continue
    if (temporary !== undefined && isRubbish(file, String(temporary.pid)))
      await rm(file.path, { force: true }).catch(() => {})
    else usage.underWay += file.bytes
  }
  return usage
}

function isRubbish({ changedMs }: MeasuredFile, pid: string): boolean {
  return changedMs < Date.now() - RUBBISH_MS && !isAlive(Number(pid))
}

function kindOf(path: string): keyof CacheUsage {
  const [top = ''] = path.split('/', 1)
  if (top === 'packages') return 'packages'
  if (path.startsWith('loader/v1/') && !path.endsWith('.ndjson')) return 'plans'
  if (top === 'access' || /\.(?:log|ndjson)(?:\.|$)/.test(path)) return 'logs'
  return 'other'
}

interface MeasuredFile {
  readonly name: string
  readonly path: string
  readonly bytes: number
  readonly changedMs: number
}

/** Synchronous, as it takes microseconds: a hand-over to the thread pool costs ten times that. */
function statsOf(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch {
    return undefined
  }
}

/** Regular files of a folder: `flat`, without folders in it, or without those that are named. What vanishes meanwhile is left out. */
async function* filesOf(folder: string, without: readonly string[] | 'flat'): AsyncGenerator<MeasuredFile> {
  const entries = await opendir(folder).catch(error => {
    if (['ENOENT', 'ENOTDIR', 'EACCES'].includes(systemCode(error) ?? '')) return undefined
    throw error
  })
  if (entries === undefined) return
  for await (const { name } of entries) {
    const path = join(folder, name)
    const stats = statsOf(path)
    if (stats?.isFile()) yield { name, path, bytes: Math.max(stats.size, stats.blocks * 512), changedMs: stats.mtimeMs }
    else if (stats?.isDirectory() && without !== 'flat' && !without.includes(path)) yield* filesOf(path, without)
  }
}
