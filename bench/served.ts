/**
 * A daemon to be measured: below bobbin-fuse, or by itself with fuse-native. What its processes use is
 * read from /proc. Nothing here touches a mount; a hang is ended from outside (`giveUp`), by the FUSE
 * connections' abort files.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { daemonCommand, findBobbinFuse } from '../daemon/control/bobbin-fuse.js'
import type { DaemonClient } from '../daemon/control/client.js'
import type { MountBody, MountFacts } from '../daemon/control/schema.js'
import type { TransportName } from '../daemon/mount/transport.js'
import { mountsBelow, reach } from '../test/support/daemon.js'
import type { WrittenPackage } from './packages.js'

/** `native`: the other one is the daemon. `fuse-native`: there is only the daemon. */
export type ServerProcess = 'bobbin-fuse' | 'daemon'

export interface Usage {
  readonly cpuSeconds: number
  /** The largest since the last look. */
  readonly peakMiB: number
  /** Now: its own memory, and the pages of mapped files. */
  readonly anonymousMiB: number
  /** Of mapped package indexes, now. */
  readonly indexMiB: number
}

export type Usages = Partial<Readonly<Record<ServerProcess, Usage>>>

const STOP_MS = 60_000
const TICKS_A_SECOND = 100

export class Served {
  readonly client: DaemonClient
  /** What was started: bobbin-fuse where there is one, else the daemon. */
  readonly process: ChildProcess
  readonly #said: () => string
  readonly #ended: Promise<void>

  private constructor(
    readonly transport: TransportName,
    readonly cacheDir: string,
    private readonly mountFolder: string,
    started: { client: DaemonClient; process: ChildProcess; said: () => string; ended: Promise<void> },
  ) {
    this.client = started.client
    this.process = started.process
    this.#said = started.said
    this.#ended = started.ended
  }

  static async start(
    transport: TransportName,
    cacheDir: string,
    options: { readonly mountFolder: string; readonly env?: NodeJS.ProcessEnv; readonly cacheBytesMax?: number },
  ): Promise<Served> {
    const { mountFolder, env, cacheBytesMax } = options
    const found = findBobbinFuse()
    if (transport === 'native' && found.path === undefined) throw new Error(`no bobbin-fuse: ${found.reason}`)
    mkdirSync(cacheDir, { recursive: true, mode: 0o750 })
    const { argv } = daemonCommand({
      cacheDir,
      ioTimeoutMs: 30_000,
      offline: false,
      freeBytesMin: 0,
      cacheBytesMax,
      transport,
    })
    const child = spawn(argv[0]!, argv.slice(1), {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, ...env },
    })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', chunk => {
      said += chunk
    })
    const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
    try {
      const client = await reach(cacheDir, child, () => said)
      return new Served(transport, cacheDir, mountFolder, { client, process: child, said: () => said, ended })
    } catch (error) {
      child.kill('SIGKILL')
      throw error
    }
  }

  log(): string {
    return this.#said()
  }

  async mount(written: WrittenPackage, openMode?: MountBody['openMode']): Promise<Mounted> {
    const path = join(this.mountFolder, `${this.transport}-${written.name.replace('/', '-')}-${openMode ?? 'default'}`)
    mkdirSync(path, { recursive: true })
    const { registry, name, topHash } = written
    const facts = await this.client.mount({
      registry,
      package: name,
      topHash,
      mountpoint: path,
      ...(openMode && { openMode }),
    })
    return { path, facts, unmount: () => this.client.unmount(path, false) }
  }

  /** The daemon, also while it starts; `undefined`: there is none. */
  daemonPid(): number | undefined {
    const pid = this.process.pid!
    if (this.transport === 'fuse-native') return pid
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim()
    return text === '' ? undefined : Number(text.split(' ')[0])
  }

  /** What its processes have used; their peaks begin again. */
  usages(): Usages {
    const daemon = this.daemonPid()
    return {
      ...(this.transport === 'native' && { 'bobbin-fuse': usageOf(this.process.pid!) }),
      ...(daemon !== undefined && { daemon: usageOf(daemon) }),
    }
  }

  /** Ends everything that waits for it. */
  giveUp(): void {
    for (const { minor, mountpoint } of mountsBelow(this.mountFolder)) {
      try {
        writeFileSync(`/sys/fs/fuse/connections/${minor}/abort`, '1')
      } catch {
        // No fusectl here.
      }
      spawnSync('umount', ['-l', '--', mountpoint])
    }
    this.process.kill('SIGKILL')
  }

  async stop(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return this.giveUp()
    this.process.kill('SIGTERM')
    const timer = setTimeout(() => this.giveUp(), STOP_MS)
    await this.#ended
    clearTimeout(timer)
    // What a server that ended badly has left behind.
    this.giveUp()
    await sleep(0)
  }
}

export interface Mounted {
  readonly path: string
  readonly facts: MountFacts
  unmount(): Promise<void>
}

function usageOf(pid: number): Usage {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  // The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const mib = (name: string) => Number(new RegExp(`^${name}:\\s*(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) / 1024
  const usage = {
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_A_SECOND,
    peakMiB: mib('VmHWM'),
    anonymousMiB: mib('RssAnon'),
    indexMiB: indexMiB(pid),
  }
  // 5: forget the peak.
  writeFileSync(`/proc/${pid}/clear_refs`, '5')
  return usage
}

function indexMiB(pid: number): number {
  let kib = 0
  let isIndex = false
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'utf8').split('\n')) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) isIndex = line.endsWith('.index')
    else if (isIndex && line.startsWith('Rss:')) kib += Number(/\d+/.exec(line)![0])
  }
  return kib / 1024
}
