/**
 * What lies in the cache and can be made again: compiled packages (an index and its manifest), and the loader's tables
 * of samples. How much it takes, and which goes first.
 *
 * Whoever has one open marks it as used each minute (the file's mtime). One that was not for five minutes may be
 * deleted, the one whose last use is longest ago first. So what a mount, a lease or a plan has open stays, also while
 * its daemon or loader is started again and opens it by its name.
 */
import { lstatSync, utimes } from 'node:fs'
import { readdir, rm, rmdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { localError, systemCode } from '../model/index.js'

const MARK_MS = 60_000
/** Long enough for a process that is started again, and for one that the machine has no time for. */
const IN_USE_MS = 5 * 60_000

export interface CompiledFiles {
  /** What is deleted together. The first one's mtime is the last use. */
  readonly paths: readonly string[]
  readonly kind: 'packages' | 'plans'
  readonly bytes: number
  readonly usedMs: number
}

/** Marks the file as used, now and each minute until the answer is called. */
export function markUsed(pathOf: () => string): () => void {
  const mark = () => {
    const now = new Date()
    // Gone, or not ours: then it is nobody's to keep.
    utimes(pathOf(), now, now, () => {})
  }
  mark()
  const timer = setInterval(mark, MARK_MS)
  timer.unref()
  return () => clearInterval(timer)
}

export async function listCompiled(cacheDir: string): Promise<CompiledFiles[]> {
  const found: CompiledFiles[] = []
  const packages = join(cacheDir, 'packages', 'v1')
  for (const registry of await list(packages)) {
    for (const revision of await list(join(packages, registry))) {
      const folder = join(packages, registry, revision)
      if (!/^[0-9a-f]{64}$/.test(revision)) continue
      const paths = (await list(folder)).sort().map(name => join(folder, name))
      if (paths.length > 0) found.push(compiled('packages', paths))
    }
  }
  const plans = join(cacheDir, 'loader', 'v1')
  for (const name of await list(plans)) if (name.endsWith('.table')) found.push(compiled('plans', [join(plans, name)]))
  return found
}

function compiled(kind: CompiledFiles['kind'], paths: readonly string[]): CompiledFiles {
  let bytes = 0
  let usedMs = 0
  for (const path of paths) {
    const stats = lstatSync(path, { throwIfNoEntry: false })
    bytes += stats?.size ?? 0
    usedMs = Math.max(usedMs, stats?.mtimeMs ?? 0)
  }
  return { kind, paths, bytes, usedMs }
}

/** Deletes what nobody uses until so many bytes are free; says how many are. They may be fewer. */
export async function pruneCompiled(
  cacheDir: string,
  bytes: number,
  options: { readonly nowMs?: number } = {},
): Promise<number> {
  if (bytes <= 0) return 0
  const { nowMs = Date.now() } = options
  const unused = (await listCompiled(cacheDir)).filter(({ usedMs }) => usedMs < nowMs - IN_USE_MS)
  let freed = 0
  for (const { kind, paths, bytes: size } of unused.sort((a, b) => a.usedMs - b.usedMs)) {
    if (freed >= bytes) break
    for (const path of paths)
      await rm(path, { force: true }).catch(error => Promise.reject(localError(`delete ${path}`, error)))
    // A folder that is empty now; one that is being filled again stays.
    if (kind === 'packages') await rmdir(dirname(paths[0]!)).catch(() => {})
    freed += size
  }
  return freed
}

async function list(folder: string): Promise<string[]> {
  return readdir(folder).catch(error => {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return []
    throw localError(`list ${folder}`, error)
  })
}
