/**
 * The sidecar: starts in one line of steps, each undone by the end in reverse, and ends when it is told to: no new
 * request is taken, those under way are finished, and what it holds is let go.
 */
import { chmodSync, mkdirSync, rmSync, statSync } from 'node:fs'
import { connect } from 'node:net'
import { dirname, join } from 'node:path'
import type { FastifyInstance } from 'fastify'
import { createLog } from '../../daemon/control/log.js'
import { boundLog } from '../../daemon/control/own-log.js'
import { daemonRoom } from '../../daemon/control/room-holds.js'
import { ownSurroundings } from '../../daemon/control/surroundings.js'
import { BobbinError, localError, QuietLog } from '../../daemon/model/index.js'
import { createSource } from '../../daemon/source/index.js'
import { unownedRoom } from '../../daemon/store/cache-room.js'
import { Packing } from '../batch/packing.js'
import { Ahead } from '../supply/ahead.js'
import { isSamePlace, Objects, type PackageAddress } from '../supply/daemon-leases.js'
import { Deliveries, type DeliveriesFile, OWN_FILE_BYTES_MAX } from '../supply/deliveries.js'
import { Door } from '../supply/door.js'
import { OpenPackages } from '../supply/open-packages.js'
import { Plans } from '../supply/plans.js'
import { Resident } from '../supply/resident.js'
import { createApp } from './app.js'
import { ByHash } from './by-hash.js'
import { type Context, Streams } from './context.js'
import { Metrics } from './metrics.js'
import { AHEAD_BYTES, type LoaderOptions, TOKEN_HELP } from './options.js'
import { Sessions } from './sessions.js'

const PROBE_MS = 2000

/**
 * Runs until SIGTERM or SIGINT. `onReady` is told where it listens. Throws CACHE_IN_USE (the socket has a sidecar), LOCAL_IO
 * (a socket cannot be made, deliveries could not be written down), DAEMON_UNAVAILABLE.
 */
export async function runLoader(
  options: LoaderOptions,
  onReady: (addresses: readonly string[]) => void,
): Promise<void> {
  const log = new QuietLog(createLog())
  // Set by who sends stderr to a file that it does not look after (cli/run/sidecar.ts).
  const ownLog = process.env.BOBBIN_LOG ? boundLog(process.env.BOBBIN_LOG) : undefined
  const { cacheDir, ioTimeoutMs, offline } = options.daemon
  const stateDir = options.stateDir ?? cacheDir
  if (options.socketPath !== undefined) await claimSocket(options.socketPath, options)
  const source = createSource({ ioTimeoutMs, offline })
  const door = new Door(options.served, log)
  const facts = { pid: process.pid, socket: options.socketPath ?? '', surroundings: ownSurroundings(options.daemon) }
  const objects = new Objects(options.daemon, facts, door, log)
  const storeLimit = await objects.storeLimit()
  // A folder of the loader's own is no part of the daemon's cache.
  const room = stateDir === cacheDir ? daemonRoom(cacheDir, options.daemon) : unownedRoom(stateDir)
  const { defaultRegistry } = options
  const plans = new Plans({
    cacheDir,
    stateDir,
    source,
    offline,
    defaultRegistry,
    door,
    mountedAt: mountedAt(options),
    log,
    room,
  })
  const packages = new OpenPackages(door, { cacheDir: stateDir, source, offline, room })
  const byHash = new ByHash(door, packages, plans)
  const bytesMax = options.aheadBytesMax ?? Math.min(AHEAD_BYTES, Math.floor(storeLimit / 4))
  const resident = new Resident(objects, bytesMax)
  const ahead = new Ahead(resident, { bytesMax, log })
  const sessions = new Sessions(options.leaseTimeoutMs)
  const packing = new Packing({ rehash: options.rehash })
  const deliveries = new Deliveries(deliveriesFile(options), log)
  const streams = new Streams(options.streamsMax)
  const metrics = new Metrics({
    streams: () => streams.count,
    leases: () => objects.leases,
    pathLeases: () => sessions.leases,
    aheadBytes: () => ahead.bytes,
    residentBytes: () => resident.bytes,
  })
  const context: Context = {
    options,
    log,
    door,
    byHash,
    plans,
    packages,
    objects,
    ahead,
    sessions,
    packing,
    deliveries,
    metrics,
    streams,
  }

  let isAllWritten = false
  const apps: FastifyInstance[] = []
  const addresses: string[] = []
  const stopping = new Promise<string>(resolve => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => resolve(signal))
  })
  try {
    const listen = async (what: string, where: { fd: number } | { path: string } | { host: string; port: number }) => {
      // Over TCP anybody could ask, also where systemd listens for us: only a socket that listens tells what it is.
      let isTcp = true
      const app = await createApp(context, () => (isTcp ? options.token : false))
      apps.push(app)
      await new Promise<void>((resolve, reject) => {
        app.server.once('error', error => reject(localError(`listen on ${what}`, error)))
        // The file of a unix socket is made in this very call, and must never be wider than it will be.
        const umask = process.umask(0o777 & ~socketMode(options))
        try {
          app.server.listen(where, resolve)
        } finally {
          process.umask(umask)
        }
      })
      // Of a unix socket: its path, or null where somebody else has made it.
      const address = app.server.address()
      isTcp = typeof address === 'object' && address !== null
      if (isTcp && options.token === undefined)
        throw new BobbinError('INVALID_ARGUMENT', `${what} is TCP, which needs a token: ${TOKEN_HELP}`)
      addresses.push('host' in where && typeof address === 'object' ? `http://${where.host}:${address?.port}` : what)
    }
    if (options.socketPath !== undefined) await listen(`unix:${options.socketPath}`, { path: options.socketPath })
    for (const fd of options.listenFds) await listen(`descriptor ${fd}`, { fd })
    if (options.listen !== undefined)
      await listen(`http://${options.listen.host}:${options.listen.port}`, options.listen)
    log.info({ addresses, cache: cacheDir }, 'the loader is ready')
    onReady(addresses)
    const reason = await stopping
    log.info({ reason, streams: streams.count }, 'the loader stops')
    // Idle connections get no more answers; what is under way goes on. The socket's name is free for the next one.
    for (const app of apps) app.server.close()
    if (!(await streams.drain(options.drainTimeoutMs)))
      log.warn({ streams: streams.count }, 'answers were not finished in time and are cut off')
  } finally {
    for (const app of apps) {
      app.server.closeAllConnections()
      await app.close()
    }
    sessions.close()
    ahead.close()
    resident.close()
    isAllWritten = await deliveries.flush()
    await objects.close()
    await packing.close()
    packages.close()
    await plans.close()
    source.close()
    ownLog?.close()
    log.flush()
  }
  if (!isAllWritten) throw new BobbinError('LOCAL_IO', 'some deliveries were not written down, and it is unknown which')
}

/** Whoever may write there can put a socket of their own in the place of ours. */
function refuseSharedFolder(folder: string): void {
  const { uid, mode } = statSync(folder)
  if (uid === process.getuid?.() && (mode & 0o022) === 0) return
  throw new BobbinError(
    'ACCESS_DENIED',
    `${folder} is not for this user alone, and the socket in it would give everything that this user may read: choose a folder that only you may write (chmod 700), or name what others may have (--serve, --allow)`,
  )
}

function deliveriesFile({
  deliveriesPath: path,
  stateDir,
  daemon: { cacheDir },
}: LoaderOptions): DeliveriesFile | false {
  if (path === false) return false
  if (path !== undefined) return { path, bytesMax: Number.POSITIVE_INFINITY }
  return { path: join(stateDir ?? cacheDir, 'loader', 'v1', 'deliveries.ndjson'), bytesMax: OWN_FILE_BYTES_MAX }
}

function mountedAt({ mounted = [] }: LoaderOptions): (address: PackageAddress) => string | undefined {
  return address => mounted.find(mount => isSamePlace(mount.address, address))?.folder
}

/** Everything is for one user; what is named is for the cache's group, as the objects are. */
function socketMode({ served }: LoaderOptions): number {
  return served.isEverything ? 0o600 : 0o660
}

/** Makes the folder, and removes a socket that nobody listens on. Throws CACHE_IN_USE, ACCESS_DENIED. */
async function claimSocket(path: string, { served, stateDir, daemon }: LoaderOptions): Promise<void> {
  const folder = dirname(path)
  const folderMode = served.isEverything ? 0o700 : 0o750
  try {
    mkdirSync(folder, { recursive: true, mode: folderMode })
    // Our own folder may be one that an earlier version, or a loader for others, has made.
    if (folder === join(stateDir ?? daemon.cacheDir, 'loader') && statSync(folder).uid === process.getuid?.())
      chmodSync(folder, folderMode)
    if (served.isEverything) refuseSharedFolder(folder)
    const stats = statSync(path, { throwIfNoEntry: false })
    if (stats === undefined) return
    if (!stats.isSocket()) throw new BobbinError('INVALID_ARGUMENT', `${path} is there, and is not a socket`)
  } catch (error) {
    throw localError(`make the socket ${path}`, error)
  }
  const isTaken = await new Promise<boolean>(resolve => {
    const probe = connect(path)
    probe.setTimeout(PROBE_MS, () => probe.destroy(new Error('no answer')))
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', error => resolve('code' in error && error.code !== 'ECONNREFUSED'))
  })
  if (isTaken) throw new BobbinError('CACHE_IN_USE', `another loader listens on ${path}`)
  rmSync(path, { force: true })
}
