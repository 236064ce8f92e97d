/**
 * A real daemon in a process of its own, with a folder for its cache and its mountpoints.
 *
 * Whatever a test does to a mount it does asynchronously or in a child process: then a filesystem
 * that hangs cannot stop this process, and the watchdog ends the hang. It aborts the FUSE connection
 * where the kernel lets us, else it detaches the mounts and kills the daemon, which does the same.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import { daemonCommand } from '../../daemon/control/bobbin-fuse.js'
import { DaemonClient } from '../../daemon/control/client.js'
import type { DaemonOptions } from '../../daemon/control/daemon.js'
import type { MountBody, MountFacts } from '../../daemon/control/schema.js'
import { AS_USERS_DO } from './cli.js'

export { cannotMount } from './can-mount.js'

import { type FileContent, type WrittenPackage, writeRegistry } from './registry.js'

const START_MS = 15_000
/** Of a daemon's whole life: longer than any test takes on a slow machine, shorter than tap's patience. */
const WATCHDOG_MS = 150_000

export interface TestDaemon {
  readonly client: DaemonClient
  readonly process: ChildProcess
  readonly folder: string
  readonly cacheDir: string
  /** What it has said on stderr. */
  log(): string
  /** Makes a mountpoint and mounts there. */
  mount(written: WrittenPackage, name: string, options?: Partial<MountBody>): Promise<Mounted>
  /** Waits for its end; gives the exit code, or the signal. */
  readonly ended: Promise<number | NodeJS.Signals>
}

export interface Mounted {
  readonly path: string
  readonly facts: MountFacts
}

/** A folder that goes when the test ends, after its daemons. Not tap's, which goes before them. */
export function testFolder(t: Test): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'bobbin-test-')))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export async function startDaemon(
  t: Test,
  options: Partial<DaemonOptions> & {
    readonly folder?: string
    readonly env?: NodeJS.ProcessEnv
    /** For tests that take longer than others. */
    readonly watchdogMs?: number
    /** What to start it with, ending in an exec of its arguments. */
    readonly prefix?: readonly string[]
  } = {},
): Promise<TestDaemon> {
  const { folder = testFolder(t), env, prefix = [], watchdogMs = WATCHDOG_MS, ...daemonOptions } = options
  const cacheDir = daemonOptions.cacheDir ?? join(folder, 'cache')
  mkdirSync(cacheDir, { recursive: true, mode: 0o750 })
  const { argv } = daemonCommand({
    cacheDir,
    ioTimeoutMs: 10_000,
    offline: false,
    freeBytesMin: 0,
    transport: 'fuse-native',
    ...daemonOptions,
  })
  const ownOptions = env?.NODE_OPTIONS === undefined ? [] : [`NODE_OPTIONS=${env.NODE_OPTIONS}`]
  const [command, ...args] = [...prefix, ...AS_USERS_DO, ...ownOptions, ...argv]
  const child = spawn(command!, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } })
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', chunk => {
    said += chunk
  })
  const ended = new Promise<number | NodeJS.Signals>(resolve =>
    child.once('exit', (code, signal) => resolve(code ?? signal ?? -1)),
  )
  const giveUp = () => {
    for (const { minor, mountpoint } of mountsBelow(folder)) {
      try {
        writeFileSync(`/sys/fs/fuse/connections/${minor}/abort`, '1')
      } catch {
        // No fusectl here.
      }
      spawnSync('umount', ['-l', '--', mountpoint])
    }
    child.kill('SIGKILL')
  }
  const watchdog = setTimeout(() => {
    t.fail('the watchdog ended a hang')
    giveUp()
  }, watchdogMs)
  t.teardown(async () => {
    clearTimeout(watchdog)
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGTERM')
      const last = setTimeout(giveUp, 10_000)
      await ended
      clearTimeout(last)
    }
    giveUp()
  })

  const client = await reach(cacheDir, child, () => said)
  return {
    client,
    process: child,
    folder,
    cacheDir,
    ended,
    log: () => said,
    async mount(written, name, mountOptions = {}) {
      const path = join(folder, name)
      mkdirSync(path, { recursive: true })
      const facts = await client.mount({ ...bodyOf(written, path), ...mountOptions })
      return { path, facts }
    },
  }
}

/** A daemon of its own, and one small package in a folder. */
export interface Small {
  readonly daemon: TestDaemon
  readonly written: WrittenPackage
  readonly registry: string
}

export async function small(
  t: Test,
  files: Readonly<Record<string, FileContent | Uint8Array | string>>,
  options: Parameters<typeof startDaemon>[1],
): Promise<Small> {
  const folder = testFolder(t)
  const registry = join(folder, 'registry')
  const written = await writeRegistry(registry, 'test/small', files)
  const daemon = await startDaemon(t, { folder, ...options })
  return { daemon, written, registry }
}

export function bodyOf(written: WrittenPackage, mountpoint: string): MountBody {
  return { registry: written.registry, package: written.name, topHash: written.topHash, mountpoint }
}

/** The owner file is read without its lock, which would get in the way of a daemon that starts. */
export async function reach(cacheDir: string, child: ChildProcess, log: () => string): Promise<DaemonClient> {
  for (const deadline = Date.now() + START_MS; Date.now() < deadline; await sleep(20)) {
    if (child.exitCode !== null || child.signalCode !== null) break
    try {
      const facts = JSON.parse(readFileSync(join(cacheDir, 'owner'), 'utf8')) as { pid: number; socketPath: string }
      if (facts.pid !== child.pid) continue
      const client = new DaemonClient(facts.socketPath, facts.pid)
      if (await client.isAlive()) return client
    } catch {
      // Not written yet.
    }
  }
  throw new Error(`the daemon did not start: ${log()}`)
}

/** From the mount table alone: nothing is touched. */
export function mountsBelow(folder: string): { minor: string; mountpoint: string; type: string }[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map(line => line.split(' '))
    .filter(fields => fields[4]?.startsWith(folder))
    .map(fields => ({
      minor: fields[2]!.split(':')[1]!,
      mountpoint: fields[4]!.replace(/\\([0-7]{3})/g, (_, digits: string) =>
        String.fromCharCode(Number.parseInt(digits, 8)),
      ),
      type: fields[fields.indexOf('-') + 1]!,
    }))
}

export interface Ran {
  readonly status: number | null
  readonly stdout: Buffer
  readonly stderr: string
}

/** Runs a program to its end. */
export function run(command: string, args: readonly string[], options: { cwd?: string } = {}): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, LC_ALL: 'C' },
      ...options,
    })
    const stdout: Buffer[] = []
    let stderr = ''
    child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk))
    child.stderr.on('data', chunk => {
      stderr += chunk
    })
    child.once('error', reject)
    child.once('close', status => resolve({ status, stdout: Buffer.concat(stdout), stderr }))
  })
}

/** Runs a Python script, whose arguments are `sys.argv[1:]` and whose last line is JSON. */
export async function python<T>(script: string, ...args: readonly string[]): Promise<T> {
  const { status, stdout, stderr } = await run('python3', ['-c', script, ...args])
  if (status !== 0) throw new Error(`python3: ${stderr}`)
  return JSON.parse(stdout.toString('utf8')) as T
}

/** Waits until something is so; gives up after some seconds. */
export async function until(what: string, isSo: () => boolean | Promise<boolean>, ms = 60_000): Promise<void> {
  for (const deadline = Date.now() + ms; !(await isSo()); await sleep(20)) {
    if (Date.now() > deadline) throw new Error(`in vain: ${what}`)
  }
}
