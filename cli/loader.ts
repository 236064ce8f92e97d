import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { findDaemon } from '../daemon/control/client.js'
import { fitsSocket, SOCKET_PATH_BYTES_MAX } from '../daemon/control/doors.js'
import { createLog } from '../daemon/control/log.js'
import { BobbinError, localError, parseBytes, parseDurationMs } from '../daemon/model/index.js'
import { LOADER_DEFAULTS, type LoaderOptions, TOKEN_HELP } from '../loader/http/options.js'
import { runLoader } from '../loader/http/service.js'
import { requireCache } from './context.js'
import { daemonDiffers } from './daemon-differs.js'
import { lookAtSecret } from './doctor-rights.js'
import { Output } from './output.js'
import { refuseOpenDoor, servedBy } from './served.js'
import { type CommonFlags, readSettings } from './settings.js'

interface LoaderFlags extends CommonFlags {
  readonly socket?: string
  /** Of the loader of a run. */
  readonly mountedAt?: readonly string[]
  readonly state?: string
  readonly listen?: string
  readonly tokenFile?: string
  readonly stepTimeout?: string
  readonly leaseTimeout?: string
  readonly drainTimeout?: string
  readonly stuckTimeout?: string
  readonly ahead?: string
  readonly streamsMax?: string
  readonly rehash?: boolean
  /** false: `--no-deliveries`. */
  readonly deliveries?: string | false
}

/** The first descriptor that systemd hands over. */
const LISTEN_FDS_START = 3
const TOKEN_LENGTH_MIN = 16

/** In the foreground, until SIGTERM or Ctrl-C; what it has to say goes to stderr as JSON lines. */
export async function loader(flags: LoaderFlags): Promise<void> {
  const settings = readSettings(flags)
  const output = new Output(flags)
  const stateDir = flags.state === undefined ? undefined : resolve(flags.state)
  requireCache(stateDir ?? settings.cacheDir)
  const listenFds = inheritedSockets()
  const listen = flags.listen === undefined ? undefined : parseListen(flags.listen)
  const token = readToken(flags, listen !== undefined)
  const { served, mounted } = await servedBy({ ...settings, cacheDir: stateDir ?? settings.cacheDir }, flags.mountedAt)
  if (listen !== undefined) refuseOpenDoor(served, `${listen.host}:${listen.port}`)
  if (listenFds.length > 0) refuseOpenDoor(served, 'the socket that systemd has passed')
  const isElsewhere = listenFds.length > 0 || (listen !== undefined && flags.socket === undefined)
  const socketPath = isElsewhere
    ? undefined
    : socketOf(flags.socket ?? join(stateDir ?? settings.cacheDir, 'loader', 'loader.sock'))
  const options: LoaderOptions = {
    daemon: settings,
    stateDir,
    defaultRegistry: settings.registry,
    served,
    mounted,
    socketPath,
    listenFds,
    listen,
    token,
    stepTimeoutMs: duration('--step-timeout', flags.stepTimeout) ?? LOADER_DEFAULTS.stepTimeoutMs,
    leaseTimeoutMs: duration('--lease-timeout', flags.leaseTimeout) ?? LOADER_DEFAULTS.leaseTimeoutMs,
    drainTimeoutMs: duration('--drain-timeout', flags.drainTimeout) ?? LOADER_DEFAULTS.drainTimeoutMs,
    stuckTimeoutMs: duration('--stuck-timeout', flags.stuckTimeout) ?? LOADER_DEFAULTS.stuckTimeoutMs,
    aheadBytesMax: flags.ahead === undefined ? undefined : named('--ahead', () => parseBytes(flags.ahead!)),
    streamsMax: flags.streamsMax === undefined ? LOADER_DEFAULTS.streamsMax : count('--streams-max', flags.streamsMax),
    rehash: flags.rehash ?? false,
    deliveriesPath: flags.deliveries && resolve(flags.deliveries),
  }
  const running = findDaemon(settings.cacheDir)
  const differs = running && (await daemonDiffers(running, settings).catch(() => undefined))
  // Whether that daemon answers, the loader finds out by itself.
  if (differs !== undefined) createLog().warn(differs)
  await runLoader(options, addresses => {
    void output
      .row(
        { addresses, pid: process.pid },
        addresses.map(address => `listening on ${address}`),
      )
      .then(() => output.flush())
  })
}

/** sd_listen_fds(3): sockets that systemd listens on, so that clients wait while we are started again. */
function inheritedSockets(): number[] {
  const { LISTEN_PID, LISTEN_FDS } = process.env
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete process.env[name]
  if (LISTEN_FDS === undefined || Number(LISTEN_PID) !== process.pid) return []
  return Array.from({ length: Number(LISTEN_FDS) }, (_, i) => LISTEN_FDS_START + i)
}

function socketOf(text: string): string {
  const path = resolve(text.replace(/^unix:/, ''))
  if (fitsSocket(path)) return path
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `a socket's path has at most ${SOCKET_PATH_BYTES_MAX} bytes: give a shorter one with --socket instead of ${path}`,
  )
}

function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:]+)):(\d{1,5})$/.exec(text)
  if (match && Number(match[3]) <= 65_535) return { host: (match[1] ?? match[2])!, port: Number(match[3]) }
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `--listen: ${JSON.stringify(text)} is not HOST:PORT (like 127.0.0.1:8099 or [::1]:8099)`,
  )
}

/** Over TCP anybody could ask, so there is no listening without a token. */
function readToken({ tokenFile }: LoaderFlags, isNeeded: boolean): string | undefined {
  let token = process.env.BOBBIN_LOADER_TOKEN ?? ''
  delete process.env.BOBBIN_LOADER_TOKEN
  if (tokenFile !== undefined) {
    try {
      token = readFileSync(tokenFile, 'utf8').trim()
      for (const { found, fix } of lookAtSecret(tokenFile, 'the token')) createLog().warn({ fix }, found)
    } catch (error) {
      throw localError(`read ${tokenFile}`, error)
    }
  }
  if (token.length >= TOKEN_LENGTH_MIN) return token
  if (token === '' && tokenFile === undefined && !isNeeded) return undefined
  throw new BobbinError('INVALID_ARGUMENT', `--listen needs a token: ${TOKEN_HELP}`)
}

function duration(name: string, text: string | undefined): number | undefined {
  return text === undefined ? undefined : named(name, () => parseDurationMs(text))
}

function count(name: string, text: string): number {
  if (/^[1-9]\d{0,5}$/.test(text)) return Number(text)
  throw new BobbinError('INVALID_ARGUMENT', `${name}: ${JSON.stringify(text)} is not a number from 1 on`)
}

function named<T>(name: string, parse: () => T): T {
  try {
    return parse()
  } catch (error) {
    throw new BobbinError('INVALID_ARGUMENT', `${name}: ${error instanceof Error ? error.message : error}`)
  }
}
