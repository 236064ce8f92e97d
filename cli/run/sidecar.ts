/**
 * A run's own loader: its socket is the run's alone, and so is what it writes down that it delivered. It gives the revisions
 * that the run has mounted, and nothing else: whoever is in the container could read those anyway.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, closeSync, mkdirSync, openSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { fitsSocket } from '../../daemon/control/doors.js'
import { BobbinError } from '../../daemon/model/index.js'
import type { RunFolder } from '../record/run-folder.js'
import { SERVE_NOTHING } from '../served.js'
import { makeTemporaryFolder } from './temporary-folder.js'

/** A mount of the run. */
export interface ServedMount {
  readonly registry: string
  readonly package: string
  readonly topHash: string
  /** Where the command finds it, when that is where it reads what it gets as paths; `undefined`: it reads in the store. */
  readonly seenAt?: string
}

export interface Sidecar {
  /** Bound into containers. */
  readonly folder: string
  readonly socket: string
  /** Resolves when it has written down all that it delivered; false: it ended otherwise, and has perhaps not. */
  stop(): Promise<boolean>
}

/** What the loader has to know of this process's settings: they may come from flags. */
export interface SidecarOptions {
  readonly offline?: boolean
  readonly ioTimeoutMs?: number
  /** The default registry. */
  readonly registry?: string | undefined
  /** When it has not stopped by then, it is killed. */
  readonly stopMs?: number
}

const START_MS = 30_000
const STOP_MS = 30_000
/** For answers under way: well before it is killed, so that it has time to write down what it has delivered. */
const DRAIN = '15s'

export async function startSidecar(
  run: RunFolder,
  cacheDir: string,
  mounts: readonly ServedMount[],
  signal: AbortSignal,
  { offline = false, ioTimeoutMs, registry, stopMs = STOP_MS }: SidecarOptions = {},
): Promise<Sidecar> {
  const isShort = fitsSocket(join(run.file('loader'), 'loader.sock'))
  // Others cannot get this far; whoever is in the container can, by the binding.
  const base = isShort ? run.path : makeTemporaryFolder('bobbin-run-')
  const folder = join(base, 'loader')
  mkdirSync(folder, { mode: 0o755 })
  const socket = join(folder, 'loader.sock')
  const main = fileURLToPath(new URL('../main.js', import.meta.url))
  const args = [
    'loader',
    '--json',
    '--cache',
    cacheDir,
    '--socket',
    socket,
    '--deliveries',
    run.file('deliveries.ndjson'),
    '--drain-timeout',
    DRAIN,
    ...servedBy(mounts),
    ...(offline ? ['--offline'] : []),
    ...(ioTimeoutMs === undefined ? [] : ['--io-timeout', `${ioTimeoutMs}ms`]),
  ]
  const log = openSync(run.file('loader.log'), 'a', 0o644)
  const env = {
    ...process.env,
    BOBBIN_RUN: run.runId,
    BOBBIN_LOG: run.file('loader.log'),
    ...(registry !== undefined && { BOBBIN_REGISTRY: registry }),
  }
  const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', log], detached: true, env })
  closeSync(log)
  const stop = async () => {
    const isRunning = child.pid !== undefined && child.exitCode === null && child.signalCode === null
    if (isRunning) {
      const over = new Promise(resolve => child.once('exit', resolve))
      child.kill('SIGTERM')
      const last = setTimeout(() => child.kill('SIGKILL'), stopMs)
      await over
      clearTimeout(last)
    }
    rmSync(isShort ? folder : base, { recursive: true, force: true })
    // It ends well when it is told to; otherwise it was faster than we, or did not manage.
    return isRunning && child.exitCode === 0
  }
  try {
    await ready(child, signal)
    // Containers may run as anybody.
    chmodSync(socket, 0o666)
    return { folder, socket, stop }
  } catch (error) {
    await stop()
    throw error
  }
}

/** Said by flags, so that what a config file or the environment says of other loaders does not count. */
function servedBy(mounts: readonly ServedMount[]): string[] {
  if (mounts.length === 0) return ['--serve', SERVE_NOTHING]
  const named = mounts.map(({ registry, package: name, topHash }) => `${registry}/${name}@${topHash}`)
  const folders = mounts.flatMap(({ seenAt }) => seenAt ?? [])
  return [...named.flatMap(one => ['--serve', one]), ...folders.flatMap(folder => ['--mounted-at', folder])]
}

function ready(child: ChildProcess, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (why: string) =>
      reject(new BobbinError('DAEMON_UNAVAILABLE', `the run's loader ${why}: its log is loader.log`))
    const timer = setTimeout(() => fail('does not start'), START_MS)
    const onAbort = () => reject(new BobbinError('INTERRUPTED', 'interrupted'))
    signal.addEventListener('abort', onAbort, { once: true })
    const done = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
    }
    child.once('error', error => fail(`cannot be started (${error.message})`))
    child.once('exit', code => {
      done()
      fail(`ended with ${code}`)
    })
    child.stdout!.once('data', () => {
      done()
      resolve()
    })
  })
}
