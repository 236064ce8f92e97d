/** `bobbin loader` as people run it, on a cache of its own, with the daemon that it starts; and a plain client. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { AS_USERS_DO, Bobbin } from './cli.js'
import { bobbinPath } from './parts.js'

export interface LoaderOptions {
  /** Of the cache; short, for its sockets. Default: one of its own. */
  readonly folder?: string
  readonly args?: readonly string[]
  readonly env?: Readonly<Record<string, string | undefined>>
}

export interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
  /** Of a document. */
  json<T = Record<string, unknown>>(): T
}

export interface AskOptions {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: unknown
  /** A `http://` address instead of the unix socket. */
  readonly base?: string
}

const START_MS = 60_000

export class RunningLoader {
  process!: ChildProcess
  /** Where it said that it listens. */
  addresses: readonly string[] = []
  log = ''
  readonly cacheDir: string
  readonly cli: Bobbin

  readonly #folder: string

  constructor(private readonly options: LoaderOptions) {
    this.#folder = options.folder ?? mkdtempSync(join(tmpdir(), 'bobbin-loader-'))
    this.cacheDir = join(this.#folder, 'cache')
    this.cli = new Bobbin(this.cacheDir, options.env)
  }

  get socket(): string {
    return join(this.cacheDir, 'loader', 'loader.sock')
  }
  get objects(): string {
    return join(this.cacheDir, 'objects', 'v1')
  }

  async start(...more: string[]): Promise<void> {
    const [command, ...before] = AS_USERS_DO
    const { args = [], env } = this.options
    this.process = spawn(command!, [...before, process.execPath, bobbinPath, 'loader', '--json', ...args, ...more], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, AWS_EC2_METADATA_DISABLED: 'true', ...env, BOBBIN_CACHE: this.cacheDir },
    })
    let said = ''
    this.process.stderr!.setEncoding('utf8').on('data', chunk => {
      this.log += chunk
    })
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`the loader does not start: ${this.log}`)), START_MS)
      this.process.once('exit', code => reject(new Error(`the loader ended with ${code}: ${this.log}`)))
      this.process.stdout!.setEncoding('utf8').on('data', chunk => {
        said += chunk
        if (!said.includes('\n')) return
        clearTimeout(timer)
        this.addresses = (JSON.parse(said) as { addresses: string[] }).addresses
        resolve()
      })
    })
  }

  /** Resolves with how it ended. */
  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    const { exitCode, signalCode } = this.process
    if (exitCode !== null || signalCode !== null) return exitCode
    const ended = new Promise<number | null>(resolve => this.process.once('exit', resolve))
    this.process.kill(signal)
    return ended
  }

  async stop(): Promise<void> {
    await this.end('SIGKILL')
    await this.cli.try('stop', '--force')
    if (this.options.folder === undefined) rmSync(this.#folder, { recursive: true, force: true })
  }

  ask(path: string, { method, headers, body, base }: AskOptions = {}): Promise<Answer> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    return new Promise((resolve, reject) => {
      const call = request(base === undefined ? `http://loader${path}` : `${base}${path}`, {
        ...(base === undefined && { socketPath: this.socket }),
        method: method ?? (text === undefined ? 'GET' : 'POST'),
        agent: false,
        headers: { ...(text !== undefined && { 'content-type': 'application/json' }), ...headers },
      })
      call.once('error', reject)
      call.once('response', response => {
        const chunks: Buffer[] = []
        response.on('data', chunk => chunks.push(chunk))
        response.once('error', reject)
        response.once('end', () => {
          if (!response.complete) return reject(new Error('the answer was cut'))
          const bytes = Buffer.concat(chunks)
          resolve({
            status: response.statusCode!,
            headers: response.headers,
            body: bytes,
            json: <T>() => JSON.parse(bytes.toString('utf8')) as T,
          })
        })
      })
      call.end(text)
    })
  }

  /** Throws unless it is made. */
  async plan<T = PlanAnswer>(body: object): Promise<T> {
    const answer = await this.ask('/v1/plans', { body })
    if (answer.status >= 300) throw new Error(`no plan: ${answer.body}`)
    return answer.json<T>()
  }
}

export interface PlanAnswer {
  readonly planId: string
  readonly topHash: string
  readonly samples: number
  readonly entries: number
  readonly bytes: number
  readonly stepsPerEpoch: number
  readonly shardsPerEpoch: number
  readonly shards: string
  readonly objects: string
}

export async function startLoader(t: Test, options: LoaderOptions = {}): Promise<RunningLoader> {
  const loader = new RunningLoader(options)
  t.teardown(() => loader.stop())
  await loader.start()
  return loader
}

/** The members of a tar, by a reader that knows no more than the format. */
export function untar(bytes: Buffer): { readonly name: string; readonly content: Buffer }[] {
  const members: { name: string; content: Buffer }[] = []
  for (let at = 0; bytes[at] !== 0; ) {
    const field = (from: number, length: number) =>
      bytes.toString('utf8', at + from, at + from + length).replace(/\0.*$/s, '')
    const size = Number.parseInt(field(124, 12), 8)
    const stored = Number.parseInt(field(148, 8), 8)
    let sum = 0
    for (let i = 0; i < 512; i++) sum += i >= 148 && i < 156 ? 32 : bytes[at + i]!
    if (sum !== stored) throw new Error(`the header of ${field(0, 100)} has a wrong checksum`)
    members.push({ name: field(0, 100), content: bytes.subarray(at + 512, at + 512 + size) })
    at += 512 + 512 * Math.ceil(size / 512)
    if (at >= bytes.length) throw new Error('the tar is cut')
  }
  return members
}
