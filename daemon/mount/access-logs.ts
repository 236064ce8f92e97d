/**
 * Which access logs are kept (access-log.ts writes them):
 *
 *  - those of mounts that last;
 *  - those of a run's mounts, until its record is made: as long as the run's folder has the file `needs-access-logs`. A daemon
 *    that cannot look there (another user's folder, one that is not there at the moment) keeps them for 30 days;
 *  - of the others the newest, a hundred and 1 GiB at most.
 *
 * So a log of a run whose folder was deleted is one of the others. All together take a part of the cache's quota at most:
 * whoever may read a mount can make its log grow, and must not push the objects of others out of the cache.
 */
import { closeSync, openSync, readdirSync, readSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** In a run's folder: its record is still to be made from the access logs. */
export const NEEDS_ACCESS_LOGS = 'needs-access-logs'

const LOGS_MAX = 100
const LOGS_BYTES_MAX = 2 ** 30
/** Looking costs a read of each log. */
const LOOK_AGAIN_MS = 60_000
/** Longer than most jobs. */
const UNSEEN_RUN_MS = 30 * 24 * 60 * 60 * 1000
/** Of a log's first line, which tells of its run. Bytes. */
const FACTS_BYTES_MAX = 64 * 2 ** 10

interface KeptLog {
  readonly path: string
  /** Bytes. */
  readonly size: number
  readonly mtimeMs: number
}

export function accessFolder(cacheDir: string): string {
  return join(cacheDir, 'access')
}

/** The room that all access logs of a cache have, and the mounts that write them: a cache has one daemon. */
export class AccessLogRoom {
  readonly #live = new Set<string>()
  readonly #folder: string
  /** All logs in the folder, once they were looked at. */
  #bytes = 0
  #lookAgainMs = 0

  /** `bytesMax`: what all of them may take together. */
  constructor(
    cacheDir: string,
    private readonly bytesMax: () => number = () => Number.POSITIVE_INFINITY,
  ) {
    this.#folder = accessFolder(cacheDir)
  }

  begin(path: string): void {
    this.#live.add(path)
  }

  end(path: string): void {
    this.#live.delete(path)
  }

  /** Deletes the logs that are not kept. */
  prune(needed = 0): void {
    this.#bytes = pruneAccessLogs(this.#folder, this.#live, Math.min(LOGS_BYTES_MAX, this.bytesMax() - needed))
  }

  /** Takes room for what is about to be written; false: there is none, also without the logs that nobody needs. */
  take(bytes: number): boolean {
    if (this.#bytes + bytes > this.bytesMax()) {
      if (Date.now() < this.#lookAgainMs) return false
      this.prune(bytes)
      if (this.#bytes + bytes > this.bytesMax()) {
        this.#lookAgainMs = Date.now() + LOOK_AGAIN_MS
        return false
      }
    }
    this.#bytes += bytes
    return true
  }
}

/** How many bytes the logs take that are left. `live`: paths of those whose mounts last. */
function pruneAccessLogs(folder: string, live: ReadonlySet<string>, bytesMax: number): number {
  const logs = logsIn(folder)
  const kept = logs.filter(log => live.has(log.path) || isNeeded(log))
  let bytes = kept.reduce((sum, { size }) => sum + size, 0)
  const others = logs.filter(log => !kept.includes(log))
  let count = kept.length
  for (const { path, size } of others) {
    if (count < LOGS_MAX && bytes + size <= bytesMax) {
      count++
      bytes += size
    } else {
      rmSync(path, { force: true })
    }
  }
  return bytes
}

/** The newest mounts first. */
function logsIn(folder: string): KeptLog[] {
  const timeOf = (name: string) => Number(/-(\d+)-\d+\.log$/.exec(name)?.[1] ?? 0)
  return readdirSync(folder)
    .sort((a, b) => timeOf(b) - timeOf(a))
    .flatMap(name => {
      const path = join(folder, name)
      const stats = statSync(path, { throwIfNoEntry: false })
      return stats === undefined ? [] : [{ path, size: stats.size, mtimeMs: stats.mtimeMs }]
    })
}

function isNeeded({ path, mtimeMs }: KeptLog): boolean {
  const run = runOf(path)
  if (run === undefined) return false
  const isRecent = Date.now() - mtimeMs < UNSEEN_RUN_MS
  try {
    // Where even the folder of all runs is missing, a disk is, or we may not see it.
    return (
      statSync(join(run, NEEDS_ACCESS_LOGS), { throwIfNoEntry: false }) !== undefined ||
      (statSync(dirname(run), { throwIfNoEntry: false }) === undefined && isRecent)
    )
  } catch {
    return isRecent
  }
}

/** The folder of the run whose mount this was. */
function runOf(path: string): string | undefined {
  try {
    const fd = openSync(path, 'r')
    try {
      const start = Buffer.alloc(FACTS_BYTES_MAX)
      const text = start.toString('utf8', 0, readSync(fd, start, 0, start.length, 0))
      const { run } = JSON.parse(text.slice(0, text.indexOf('\n'))) as { readonly run?: unknown }
      return typeof run === 'string' && run.startsWith('/') ? run : undefined
    } finally {
      closeSync(fd)
    }
  } catch {
    // Its first line was never whole.
    return undefined
  }
}
