/**
 * What the demo plays on: a folder of its own, commands as a person would type them, and an end that
 * leaves nothing behind, however it comes about.
 */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { bobbinPath } from '../support/parts.js'

/** Nothing here takes long; a mount that hangs must not make the demo hang. */
const TIMEOUT_MS = 60_000
const LINES_MAX = 14

export interface Outcome {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

export class Stage {
  readonly folder = mkdtempSync(join(tmpdir(), 'bobbin-demo-'))
  readonly cache = join(this.folder, 'cache')
  readonly mountpoint = join(this.folder, 'data')
  readonly #environment = { ...process.env, BOBBIN_CACHE: this.cache, BOBBIN_CONFIG: undefined, NO_COLOR: '1' }
  #step = 0

  heading(text: string): void {
    this.#step++
    process.stdout.write(`\n${this.#step}. ${text}\n`)
  }

  say(text: string): void {
    for (const line of text.split('\n')) process.stdout.write(`   ${line}\n`)
  }

  /** Shows the command and what it prints; throws unless it ends with `status`. */
  async bobbin(
    args: readonly string[],
    options: { readonly status?: number; readonly isQuiet?: boolean } = {},
  ): Promise<Outcome> {
    return this.#show(`bobbin ${args.map(quoted).join(' ')}`, process.execPath, [bobbinPath, ...args], options)
  }

  /** The same for any other program, which may touch the mount: it is not us who would hang. */
  async shell(command: string, options: { readonly status?: number } = {}): Promise<Outcome> {
    return this.#show(command, 'sh', ['-c', command], options)
  }

  async #show(
    shown: string,
    program: string,
    args: readonly string[],
    { status = 0, isQuiet = false }: { readonly status?: number; readonly isQuiet?: boolean },
  ): Promise<Outcome> {
    if (!isQuiet) process.stdout.write(`   $ ${this.#short(shown)}\n`)
    const outcome = await this.#run(program, args)
    if (!isQuiet) {
      const lines = `${outcome.stdout}${outcome.stderr}`.trimEnd().split('\n')
      for (const line of lines.slice(0, LINES_MAX)) process.stdout.write(`     ${this.#short(line)}\n`)
      if (lines.length > LINES_MAX) process.stdout.write(`     … ${lines.length - LINES_MAX} more lines\n`)
      if (status !== 0) process.stdout.write(`     (exit code ${outcome.status})\n`)
    }
    if (outcome.status !== status) {
      throw new Error(`${shown} ended with ${outcome.status} instead of ${status}: ${outcome.stderr}`)
    }
    return outcome
  }

  #run(program: string, args: readonly string[]): Promise<Outcome> {
    return new Promise((resolve, reject) => {
      const child = spawn(program, args, {
        cwd: this.folder,
        env: this.#environment,
        stdio: ['ignore', 'pipe', 'pipe'],
        timeout: TIMEOUT_MS,
        killSignal: 'SIGKILL',
      })
      let stdout = ''
      let stderr = ''
      child.stdout.on('data', chunk => {
        stdout += chunk
      })
      child.stderr.on('data', chunk => {
        stderr += chunk
      })
      child.once('error', reject)
      child.once('close', status => resolve({ status: status ?? 124, stdout, stderr }))
    })
  }

  /** The temporary folder's name would be on every line. */
  #short(text: string): string {
    return text.replaceAll(this.folder, '/demo')
  }

  get log(): string {
    const path = join(this.cache, 'daemon.log')
    return existsSync(path) ? readFileSync(path, 'utf8') : ''
  }

  /** Synchronous, so that it also works on the way out after a signal. */
  clear(): void {
    spawnSync(process.execPath, [bobbinPath, 'stop', '--force', '--quiet'], {
      env: this.#environment,
      timeout: TIMEOUT_MS,
    })
    if (readFileSync('/proc/self/mountinfo', 'utf8').includes(this.folder)) {
      throw new Error(`something is still mounted below ${this.folder}`)
    }
    rmSync(this.folder, { recursive: true, force: true })
  }
}

function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text}'`
}
