/**
 * The daemon: owns a cache, serves its mounts, answers on its socket, and ends in order.
 *
 * It starts in one line of steps, each undone by the end in reverse: ownership, workers, store,
 * fetcher, mounts, socket.
 */
import { readFileSync } from 'node:fs'
import { Fetcher } from '../fetch/fetcher.js'
import { BobbinError, LastErrors, type Log, QuietLog } from '../model/index.js'
import type { VerifiedObject } from '../mount/link-frames.js'
import { NativeTransport } from '../mount/native.js'
import type { FuseProcessFacts, OpenModeWish, TransportName } from '../mount/transport.js'
import { transportNamed } from '../mount/transports.js'
import { ReplaceableSource } from '../source/replaceable.js'
import { acquireOwnership, type ObjectStore, openStore, parseStamp } from '../store/index.js'
import { hashFileOn } from '../work/hash-object.js'
import { Workers } from '../work/workers.js'
import { findBobbinFuse } from './bobbin-fuse.js'
import { watchCache } from './cache-watch.js'
import { answerCaller } from './callers.js'
import { Concealer } from './conceal.js'
import { DOORS, type Door, doorPath, mountsPath } from './doors.js'
import { Leases } from './leases.js'
import { createLog } from './log.js'
import { Mounts } from './mounts.js'
import { boundLog, daemonLogPath } from './own-log.js'
import { RoomHolds } from './room-holds.js'
import type { ReloadBody, StatusFacts } from './schema.js'
import { ServedMounts } from './served-mounts.js'
import { removeSocket, startServer } from './server.js'
import { chooseSocketPath } from './socket-path.js'
import {
  environmentThatMatters,
  ownSurroundings,
  type SettingsThatMatter,
  takeEnvironment,
  takeKept,
} from './surroundings.js'

/** What of its quota a cache's access logs may take: 10,000,000 files that are read need 480 MB. */
const ACCESS_LOGS_PART = 1 / 8

/** Read at the start: an upgrade may take the folder away while this daemon runs. */
const { version: VERSION } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
  version: string
}

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
  /** Of mounts that do not say. Default: auto. */
  readonly openMode?: OpenModeWish | undefined
  /** Registries whose packages it leases to others than its owner, besides what is mounted. */
  readonly allow?: readonly string[] | undefined
}

/** Runs until it is told to stop; resolves when everything has been put away. Throws CACHE_IN_USE. */
export async function runDaemon(options: DaemonOptions): Promise<void> {
  const { cacheDir } = options
  /** Of the start, or of the last reload. */
  let settings: SettingsThatMatter = options
  const kept = takeKept()
  if (kept !== undefined) {
    const { environment, ...wished } = kept
    takeEnvironment(environment)
    settings = { ...settings, ...wished }
  }
  const lastErrors = new LastErrors(createLog())
  const log = new QuietLog(lastErrors)
  const ownLog = boundLog(daemonLogPath(cacheDir))
  const startedAt = Date.now()
  const inherited = takeInherited()
  const socketPath = inherited?.socketPath ?? chooseSocketPath(cacheDir)
  const supervisorPid = inherited === undefined ? null : process.ppid
  const ownership = await acquireOwnership(
    cacheDir,
    {
      pid: supervisorPid ?? process.pid,
      socketPath,
      leasesPath: doorPath(socketPath, 'leases'),
      statusPath: doorPath(socketPath, 'status'),
      ...(inherited?.isForGroup && { mountsPath: mountsPath(socketPath) }),
      version: VERSION,
      startedAt,
    },
    { inheritedFd: inherited?.ownerFd },
  )
  const native =
    inherited &&
    (await NativeTransport.connect({
      linkFd: inherited.linkFd,
      cacheDir,
      version: VERSION,
      log,
      // Asked for when a mount is read, and mounts come after the store.
      accessLogBytesMax: () => Math.floor(store.stats().limitBytes * ACCESS_LOGS_PART),
    }))
  const sourceConfig = () => ({ ioTimeoutMs: settings.ioTimeoutMs, offline: settings.offline })
  const workers = new Workers(sourceConfig())
  const store = await openStore(cacheDir, {
    bytesMax: settings.cacheBytesMax,
    freeBytesMin: settings.freeBytesMin,
    hashFile: hashFileOn(workers),
    letGo: native && (ids => native.letGo(ids)),
    openElsewhere: native && (async () => (await native.stats()).pinnedBytes),
    syncProgram: findBobbinFuse().path,
    log,
  })
  const fetcher = new Fetcher({ store, workers, log })
  const source = new ReplaceableSource(sourceConfig())
  const isOffline = () => settings.offline
  const transport = transportNamed(options.transport, native)
  const mounts = new Mounts({
    cacheDir,
    source,
    isOffline,
    room: store,
    transport,
    openMode: options.openMode ?? 'auto',
    objects: {
      open: (spec, options) => fetcher.open(spec, options),
      stateOf: spec => store.stateOf(spec),
      roomBytes: () => store.roomBytes(),
    },
    log,
  })
  const leases = new Leases({ cacheDir, source, isOffline, fetcher, store, workers, log })
  // What others have mounted makes nothing public.
  const ownMounts = () => mounts.list().filter(({ uid }) => uid === undefined)
  const servedMounts = new ServedMounts(ownMounts, options.allow ?? [])
  const concealer = new Concealer('the daemon', log)
  native?.answerCallers((caller, line) => answerCaller(caller, line, { mounts, servedMounts, concealer, log }))
  native?.start(verifiedObjects(store))
  const roomHolds = new RoomHolds(store, () => store.stats().limitBytes, log)
  await mounts.begin()
  void store.settle()
  const stopping = new Promise<string>(resolve => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.once(signal, () => resolve(signal))
    void native?.gone.then(() => resolve('bobbin-fuse has gone'))
    void startServer({
      socketPath,
      listenFds: inherited?.doorFds,
      mounts,
      leases,
      roomHolds,
      servedMounts,
      log,
      status,
      surroundings: () => ownSurroundings(settings),
      reload,
      stop: () => resolve('stop'),
    }).then(
      server => {
        log.info({ cache: cacheDir, socket: socketPath }, 'the daemon is ready')
        servers.push(server)
        native?.tellServing()
        stopWatching = watchCache(ownership, socketPath, what => {
          log.error({ cache: cacheDir }, `somebody has removed ${what}: the daemon ends, and its mounts with it`)
          resolve('lost')
        })
      },
      error => {
        log.error({ error: String(error) }, 'the daemon cannot listen')
        resolve('error')
      },
    )
  })
  const servers: { close(): Promise<unknown> }[] = []
  let stopWatching = () => {}
  // A bug must not leave mounts behind on which every call fails. Those of bobbin-fuse go on.
  const outlive = transport.survivors !== undefined
  process.once('uncaughtException', error => void crash(error, log, outlive ? undefined : mounts))
  process.once('unhandledRejection', error => void crash(error, log, outlive ? undefined : mounts))

  /** What is under way ends with what it began with; everything later is asked for with what has come. */
  async function reload({ environment, ...wished }: ReloadBody): Promise<void> {
    takeEnvironment(environment)
    settings = { ...settings, ...wished }
    source.replace(sourceConfig())
    workers.replace(sourceConfig())
    log.info({ offline: settings.offline }, 'took settings and credentials anew')
    const { ioTimeoutMs, offline, cacheBytesMax, freeBytesMin } = settings
    const forTheNext: ReloadBody = {
      environment: environmentThatMatters(),
      ioTimeoutMs,
      offline,
      ...(cacheBytesMax !== undefined && { cacheBytesMax }),
      ...(freeBytesMin !== undefined && { freeBytesMin }),
    }
    if (native?.keep(JSON.stringify(forTheNext)) === false)
      log.warn(
        {},
        'the environment is too large to be kept: a daemon that starts again by itself has the one of its start',
      )
    await store.limit({ bytesMax: wished.cacheBytesMax, freeBytesMin: wished.freeBytesMin })
  }

  async function status(): Promise<StatusFacts> {
    const { hits = 0, pinnedBytes: pinnedElsewhere = 0, fuse } = (await transport.stats?.()) ?? {}
    const { bytes, limitBytes, objects, pinnedBytes, evictions, lost, usage } = store.stats()
    const fetched = fetcher.stats()
    return {
      daemon: {
        pid: process.pid,
        supervisorPid,
        supervisorVersion: fuse?.version ?? inherited?.fuseVersion ?? null,
        version: VERSION,
        startedAt: new Date(startedAt).toISOString(),
        cache: cacheDir,
        socket: socketPath,
        log: daemonLogPath(cacheDir),
        unkeptMounts: fuse?.unkeptMounts ?? 0,
        notReplaced: fuse?.notReplaced ?? null,
      },
      link: fuse === undefined ? null : linkFacts(fuse),
      mounts: mounts.list(),
      cache: {
        bytes,
        limitBytes,
        objects,
        pinnedBytes: pinnedBytes + pinnedElsewhere,
        evictions,
        lost,
        packagesBytes: usage.packages,
        plansBytes: usage.plans,
        logsBytes: usage.logs,
        otherBytes: usage.other + usage.underWay,
      },
      fetch: { ...fetched, hits: fetched.hits + hits },
      loader: leases.facts(),
      lastErrors: [...lastErrors.list(), ...(fuse?.lastErrors ?? [])].sort((a, b) => (a.at < b.at ? -1 : 1)),
    }
  }

  const reason = await stopping
  stopWatching()
  log.info({ reason }, 'the daemon stops')
  // bobbin-fuse ends only when we are to end for good; a signal to us alone is a restart.
  const isFinal = reason === 'stop' || reason === 'lost'
  if (outlive && reason !== 'lost') await mounts.settle()
  else await mounts.close()
  for (const server of servers) await server.close()
  leases.close()
  roomHolds.close()
  await native?.close({ isFinal })
  await fetcher.close()
  await store.close()
  await workers.close()
  source.close()
  if (inherited === undefined) for (const door of DOORS) removeSocket(doorPath(socketPath, door))
  ownership.release()
  ownLog.close()
  log.flush()
  if (reason === 'error') throw new BobbinError('DAEMON_UNAVAILABLE', `the daemon could not listen on ${socketPath}`)
}

function linkFacts({ daemonsStarted, waiting, openObjects, openBytes, knownObjects }: FuseProcessFacts) {
  return { daemonsStarted, waiting, openObjects, openBytes, knownObjects }
}

async function crash(error: unknown, log: Log, mounts: Mounts | undefined): Promise<void> {
  log.error({ error: error instanceof Error ? error.stack : String(error) }, 'a bug: the daemon ends')
  const giveUp = setTimeout(() => process.exit(70), 3000)
  giveUp.unref()
  await mounts?.removeAll(true).catch(() => {})
  process.exit(70)
}

interface Inherited {
  readonly linkFd: number
  readonly ownerFd: number
  readonly doorFds: Readonly<Record<Door, number>>
  readonly socketPath?: string
  /** Others may mount. */
  readonly isForGroup: boolean
  /** Which bobbin-fuse has started us. */
  readonly fuseVersion?: string
}

/** What bobbin-fuse hands to the daemon that it starts; `undefined`: it did not start this one. */
function takeInherited(): Inherited | undefined {
  const take = (name: string) => {
    const text = process.env[name]
    // Not for our own children.
    delete process.env[name]
    return text
  }
  const names = ['LINK', 'OWNER', 'CONTROL', 'LEASES', 'STATUS']
  const fds = names.map(name => take(`BOBBIN_${name}_FD`)).map(text => (text === undefined ? undefined : Number(text)))
  const [linkFd, ownerFd, control, leases, status] = fds
  const socketPath = take('BOBBIN_SOCKET')
  const fuseVersion = take('BOBBIN_FUSE_VERSION')
  const isForGroup = take('BOBBIN_MOUNTS_FOR_GROUP') !== undefined
  if (linkFd === undefined || ownerFd === undefined) return undefined
  if (control === undefined || leases === undefined || status === undefined) return undefined
  return {
    linkFd,
    ownerFd,
    doorFds: { control, leases, status },
    isForGroup,
    ...(socketPath !== undefined && { socketPath }),
    ...(fuseVersion !== undefined && { fuseVersion }),
  }
}

function* verifiedObjects(store: ObjectStore): Generator<VerifiedObject> {
  for (const { id, stamp } of store.verified()) yield { id, ...parseStamp(stamp) }
}
