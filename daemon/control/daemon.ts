/**
 * The daemon: owns a cache, serves its mounts, answers on its socket, and ends in order.
 *
 * It starts in one line of steps, each undone by the end in reverse: ownership, workers, store,
 * fetcher, mounts, socket.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { Fetcher } from '../fetch/fetcher.js'
import { hashFileOn } from '../fetch/hash-object.js'
import { createSource } from '../fetch/source/index.js'
import { Workers } from '../fetch/workers.js'
import { BobbinError, type Log } from '../model/index.js'
import type { TransportName } from '../mount/transport.js'
import { transportNamed } from '../mount/transports.js'
import { acquireOwnership, openStore } from '../store/index.js'
import { Mounts } from './mounts.js'
import type { StatusFacts } from './schema.js'
import { startServer } from './server.js'

export interface DaemonOptions {
  readonly cacheDir: string
  readonly ioTimeoutMs: number
  readonly offline: boolean
  /** Quota of the object store, bytes. */
  readonly cacheBytesMax?: number | undefined
  /** Bytes to leave free on its disk. */
  readonly freeBytesMin?: number | undefined
  /** Default: the best one here. */
  readonly transport?: TransportName | undefined
}

/** sun_path holds 108 bytes, with its final NUL. */
const SOCKET_PATH_BYTES_MAX = 107

/** Runs until it is told to stop; resolves when everything has been put away. Throws CACHE_IN_USE. */
export async function runDaemon(options: DaemonOptions): Promise<void> {
  const { cacheDir, ioTimeoutMs, offline } = options
  const log = pino({ base: { pid: process.pid } }, pino.destination({ fd: 2, sync: true }))
  const startedAt = Date.now()
  const socketPath = chooseSocketPath(cacheDir)
  const ownership = await acquireOwnership(cacheDir, { pid: process.pid, socketPath, version: version(), startedAt })
  const sourceConfig = { ioTimeoutMs, offline }
  const workers = new Workers(sourceConfig)
  const store = await openStore(cacheDir, {
    bytesMax: options.cacheBytesMax,
    freeBytesMin: options.freeBytesMin,
    hashFile: hashFileOn(workers),
    log,
  })
  const fetcher = new Fetcher({ store, workers, log })
  const source = createSource(sourceConfig)
  const mounts = new Mounts({
    cacheDir,
    source,
    offline,
    transport: transportNamed(options.transport),
    objects: { open: (spec, { label }) => fetcher.open(spec, { label }), stateOf: spec => store.stateOf(spec) },
    log,
  })
  await mounts.clearDead()
  const stopping = new Promise<string>(resolve => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.once(signal, () => resolve(signal))
    void startServer({ socketPath, mounts, log, status, stop: () => resolve('stop') }).then(
      server => {
        log.info({ cache: cacheDir, socket: socketPath }, 'the daemon is ready')
        servers.push(server)
      },
      error => {
        log.error({ error: String(error) }, 'the daemon cannot listen')
        resolve('error')
      },
    )
  })
  const servers: { close(): Promise<unknown> }[] = []
  // A bug must not leave mounts behind on which every call fails.
  process.once('uncaughtException', error => void crash(error, log, mounts))
  process.once('unhandledRejection', error => void crash(error, log, mounts))

  function status(): StatusFacts {
    const { bytes, limitBytes, objects, pinnedBytes, evictions } = store.stats()
    return {
      daemon: {
        pid: process.pid,
        version: version(),
        startedAt: new Date(startedAt).toISOString(),
        cache: cacheDir,
        socket: socketPath,
        log: join(cacheDir, 'daemon.log'),
      },
      mounts: mounts.list(),
      cache: { bytes, limitBytes, objects, pinnedBytes, evictions },
      fetch: fetcher.stats(),
      loader: null,
      runs: [],
    }
  }

  const reason = await stopping
  log.info({ reason }, 'the daemon stops')
  await mounts.close()
  for (const server of servers) await server.close()
  await fetcher.close()
  await store.close()
  await workers.close()
  source.close()
  rmSync(socketPath, { force: true })
  ownership.release()
  if (reason === 'error') throw new BobbinError('DAEMON_UNAVAILABLE', `the daemon could not listen on ${socketPath}`)
}

async function crash(error: unknown, log: Log, mounts: Mounts): Promise<void> {
  log.error({ error: error instanceof Error ? error.stack : String(error) }, 'a bug: the daemon ends')
  const giveUp = setTimeout(() => process.exit(70), 3000)
  giveUp.unref()
  await mounts.removeAll(true).catch(() => {})
  process.exit(70)
}

/** In the cache folder where that fits, else in a folder of ours that only we can enter. */
function chooseSocketPath(cacheDir: string): string {
  const inCache = join(cacheDir, 'daemon.sock')
  if (Buffer.byteLength(inCache) <= SOCKET_PATH_BYTES_MAX) return inCache
  const folder = join(tmpdir(), `bobbin-${process.getuid?.() ?? 'user'}`)
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const stats = statSync(folder)
  if (stats.uid !== process.getuid?.() || (stats.mode & 0o022) !== 0) {
    throw new BobbinError(
      'ACCESS_DENIED',
      `${folder} is not this user's alone: remove it, or choose a cache folder with a shorter path`,
    )
  }
  return join(folder, `${createHash('sha256').update(cacheDir).digest('hex').slice(0, 16)}.sock`)
}

function version(): string {
  const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
    version: string
  }
  return version
}
