/**
 * What the demo plays on: a folder of its own, commands as a person would type them, and an end that
 * leaves nothing behind, however it comes about.
 *
 * Every command is a process group of its own. So Ctrl-C reaches the demo alone, which ends the command
 * and waits for it before it clears up; and a mount that hangs holds up a command, never the demo.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { mountsBelow } from '../support/daemon.js'
import { bobbinPath } from '../support/parts.js'

/** Nothing here takes long; what does, hangs. */
const TIMEOUT_MS = 60_000
/** From the request to end to the order: an interrupted `bobbin mount` waits for the daemon that it starts, 15 s. */
const GRACE_MS = 20_000
/** From the order to end to giving up on a process that the kernel does not let go. */
const LAST_MS = 5000
const LINES_MAX = 14
const PINO_WARN = 40

export interface Outcome {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
  /** Both, as they came. */
  readonly output: string
}

export interface ShowOptions {
  /** How it has to end. Default: [0]. */
  readonly statuses?: readonly number[]
  /** What it has to print. */
  readonly says?: RegExp
}

export class Stage {
  readonly folder = realpathSync(mkdtempSync(join(tmpdir(), 'bobbin-demo-')))
  readonly cache = join(this.folder, 'cache')
  readonly #interruption = new AbortController()
  #step = 0
  #warnings = 0

  heading(text: string): void {
    this.#step++
    process.stdout.write(`\n${this.#step}. ${text}\n`)
  }

  say(text: string): void {
    for (const line of text.split('\n')) process.stdout.write(`   ${this.#short(line)}\n`)
  }

  /** Shows the command and what it prints; throws unless it ends as `options` say. */
  async bobbin(args: readonly string[], options: ShowOptions = {}): Promise<Outcome> {
    return this.#show(`bobbin ${args.join(' ')}`, process.execPath, [bobbinPath, ...args], options)
  }

  /** The same for any other command, which may touch the mount: it is not us who would hang. */
  async shell(command: string, options: ShowOptions = {}): Promise<Outcome> {
    return this.#show(command, 'sh', ['-c', command], options)
  }

  /** Ends the command that runs, if any, and makes it and every later one throw `reason`. */
  interrupt(reason: Error): void {
    this.#interruption.abort(reason)
  }

  /** Shows what the daemon has warned of since the last time; throws unless one warning is `expected`. */
  warnings(expected: RegExp): void {
    const path = join(this.cache, 'daemon.log')
    const all = readFileSync(path, 'utf8')
      .split('\n')
      .filter(line => line.startsWith('{'))
      .map(line => JSON.parse(line) as { level: number; msg: string })
      .filter(({ level }) => level >= PINO_WARN)
      .map(({ msg }) => msg)
    const fresh = all.slice(this.#warnings)
    this.#warnings = all.length
    for (const text of fresh) this.say(`daemon.log: ${text}`)
    if (!fresh.some(text => expected.test(text))) throw new Error(`daemon.log has no line like ${expected}`)
  }

  /** Says what is still there of the demo's daemon and mounts; empty when nothing is. */
  leftovers(): string[] {
    return [
      ...daemonsOf(this.folder).map(pid => `a daemon (process ${pid})`),
      ...mountpointsBelow(this.folder).map(mountpoint => `a mount on ${mountpoint}`),
    ]
  }

  /** Asks first, then insists. Throws when something is left behind nevertheless. */
  async clear(): Promise<void> {
    const quietly = (program: string, ...args: string[]) => this.#run(program, args).catch(() => undefined)
    await quietly(process.execPath, bobbinPath, 'stop', '--force', '--quiet')
    // A daemon that was not ready yet has not heard of that.
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      for (const pid of daemonsOf(this.folder)) tryToKill(pid, signal)
      for (const deadline = Date.now() + LAST_MS; daemonsOf(this.folder).length > 0; await sleep(50)) {
        if (Date.now() > deadline) break
      }
    }
    for (const mountpoint of mountpointsBelow(this.folder)) {
      if (process.getuid?.() === 0) await quietly('umount', '-l', mountpoint)
      else await quietly('sh', '-c', 'fusermount3 -uz "$0" || fusermount -uz "$0"', mountpoint)
    }
    const left = this.leftovers()
    if (left.length > 0) throw new Error(`left behind in ${this.folder}: ${left.join(', ')}`)
    rmSync(this.folder, { recursive: true, force: true })
  }

  async #show(
    shown: string,
    program: string,
    args: readonly string[],
    { statuses = [0], says = /(?:)/ }: ShowOptions,
  ): Promise<Outcome> {
    const { signal } = this.#interruption
    signal.throwIfAborted()
    process.stdout.write(`   $ ${this.#short(shown)}\n`)
    const outcome = await this.#run(program, args, signal)
    signal.throwIfAborted()
    const lines = outcome.output.split('\n').filter(line => line !== '')
    for (const line of lines.slice(0, LINES_MAX)) process.stdout.write(`     ${this.#short(line)}\n`)
    if (lines.length > LINES_MAX) process.stdout.write(`     … ${lines.length - LINES_MAX} more lines\n`)
    if (outcome.status !== 0) process.stdout.write(`     (exit code ${outcome.status})\n`)
    if (!statuses.includes(outcome.status))
      throw new Error(`"${shown}" ended with ${outcome.status} instead of ${statuses.join(' or ')}`)
    if (!says.test(outcome.output)) throw new Error(`"${shown}" did not print ${says}`)
    return outcome
  }

  /** Runs a command to its end, which an abort of `signal` brings forward. */
  #run(program: string, args: readonly string[], signal?: AbortSignal): Promise<Outcome> {
    return new Promise((resolve, reject) => {
      const child = spawn(program, args, {
        cwd: this.folder,
        env: this.#environment(),
        stdio: ['ignore', 'pipe', 'pipe'],
        detached: true,
      })
      const timers = new Set<NodeJS.Timeout>()
      const after = (ms: number, act: () => void) => timers.add(setTimeout(act, ms))
      const order = () => {
        killGroup(child, 'SIGKILL')
        after(LAST_MS, () => finish(() => reject(new Error(`${program} ${args.join(' ')} hangs`))))
      }
      const request = () => {
        killGroup(child, 'SIGTERM')
        after(GRACE_MS, order)
      }
      const finish = (settle: () => void) => {
        for (const timer of timers) clearTimeout(timer)
        signal?.removeEventListener('abort', request)
        settle()
      }
      const said = { stdout: '', stderr: '', output: '' }
      for (const name of ['stdout', 'stderr'] as const) {
        child[name].setEncoding('utf8').on('data', (text: string) => {
          said[name] += text
          said.output += text
        })
      }
      after(TIMEOUT_MS, order)
      signal?.addEventListener('abort', request, { once: true })
      child.once('error', error => finish(() => reject(error)))
      child.once('close', status => finish(() => resolve({ status: status ?? 124, ...said })))
    })
  }

  /** Whoever runs the demo may have set Bobbin up, or speak another language than the checks here. */
  #environment(): NodeJS.ProcessEnv {
    const others = Object.entries(process.env).filter(([name]) => !name.startsWith('BOBBIN_'))
    const ours = { BOBBIN_CACHE: this.cache, XDG_CONFIG_HOME: join(this.folder, 'config'), LC_ALL: 'C', NO_COLOR: '1' }
    return { ...Object.fromEntries(others), ...ours }
  }

  /** The temporary folder's name would be on every line. */
  #short(text: string): string {
    return text.replaceAll(this.folder, '/demo')
  }
}

/** The daemons that were started with a cache below `folder`, from the process table alone. */
export function daemonsOf(folder: string): number[] {
  if (!existsSync('/proc')) return []
  return readdirSync('/proc')
    .filter(name => /^\d+$/.test(name))
    .filter(pid => {
      const [, script = '', options = ''] = commandLine(pid)
      return script.endsWith('/daemon/main.js') && options.includes(`"cacheDir":${JSON.stringify(folder).slice(0, -1)}`)
    })
    .map(Number)
}

function commandLine(pid: string): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  } catch {
    // It has ended since.
    return []
  }
}

function mountpointsBelow(folder: string): string[] {
  return existsSync('/proc/self/mountinfo') ? mountsBelow(folder).map(({ mountpoint }) => mountpoint) : []
}

function killGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid !== undefined) tryToKill(-child.pid, signal)
}

function tryToKill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended.
  }
}
