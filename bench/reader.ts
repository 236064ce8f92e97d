/** The C reader (reader.c), compiled where it is used, and the lists of files that it makes and reads. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { repository } from '../test/support/parts.js'
import { runToEnd } from './run.js'

export interface ReaderFile {
  readonly seed: number
  readonly size: number
  /** Below the folder that is read. */
  readonly path: string
}

/** What one epoch, or one reader, has done. */
export interface Reading {
  readonly files: number
  readonly bytes: number
  readonly seconds: number
  readonly failed: number
  /** Wrong bytes, or a wrong number of them. */
  readonly wrong: number
  /** Threads that did not end. */
  readonly hung: number
  /** Of one system call; 0 for epochs, which do not look at the clock. */
  readonly longestMs: number
  /** System calls over 100 ms. */
  readonly slow: number
  readonly exhausted: boolean
}

export type ReaderOptions = Readonly<Partial<Record<'threads' | 'epochs' | 'seed' | 'pause-us', number>>> & {
  readonly once?: boolean
  readonly held?: boolean
}

/** A loop that runs until it is told to end. */
export interface ReaderLoop {
  readonly process: ChildProcess
  /** `undefined`: it did not end in time, not even after `giveUp`, which ends what it waits for. */
  stop(giveUp: () => void): Promise<Reading | undefined>
}

/** The reader gives its threads 90 s. */
const STOP_MS = 110_000

export class Reader {
  readonly #path: string
  #lists = 0

  constructor(private readonly folder: string) {
    this.#path = join(folder, 'reader')
    const source = join(repository, 'bench/reader.c')
    const { status, error, stderr } = spawnSync('gcc', ['-O2', '-Wall', '-pthread', '-o', this.#path, source], {
      encoding: 'utf8',
    })
    if (status !== 0) throw new Error(`gcc does not compile bench/reader.c: ${error?.message ?? stderr}`)
  }

  /** Returns the list's path. */
  list(files: readonly ReaderFile[]): string {
    const path = join(this.folder, `list-${this.#lists++}`)
    writeFileSync(path, files.map(({ seed, size, path }) => `${seed} ${size} ${path}\n`).join(''))
    return path
  }

  async write(folder: string, list: string): Promise<void> {
    await runToEnd(this.#path, ['write', folder, list])
  }

  /** Every byte of every file, once. Throws when one is wrong. */
  async check(folder: string, list: string, options: ReaderOptions): Promise<Reading> {
    const { stdout } = await runToEnd(this.#path, ['check', folder, list, ...args(options)])
    return JSON.parse(stdout) as Reading
  }

  /** Throws when a file could not be read or had another size. */
  async epochs(folder: string, list: string, options: ReaderOptions): Promise<Reading[]> {
    const { stdout } = await runToEnd(this.#path, ['epochs', folder, list, ...args(options)])
    return stdout
      .trim()
      .split('\n')
      .map(line => JSON.parse(line) as Reading)
  }

  /** For whoever runs it elsewhere; what it says is a `Reading` a line. */
  command(verb: 'epochs', folder: string, list: string, options: ReaderOptions): string[] {
    return [this.#path, verb, folder, list, ...args(options)]
  }

  async loop(folder: string, list: string, options: ReaderOptions): Promise<ReaderLoop> {
    const child = spawn(this.#path, ['loop', folder, list, ...args(options)], { stdio: ['ignore', 'pipe', 'inherit'] })
    let said = ''
    const ready = new Promise<void>((resolve, reject) => {
      child.once('exit', status => reject(new Error(`the reader ended with ${status} before it began`)))
      child.stdout.on('data', chunk => {
        said += chunk
        if (said.startsWith('ready\n')) resolve()
      })
    })
    const ended = new Promise<void>(resolve => child.once('close', () => resolve()))
    await ready
    return {
      process: child,
      async stop(giveUp) {
        child.kill('SIGTERM')
        const timer = setTimeout(() => {
          giveUp()
          child.kill('SIGKILL')
        }, STOP_MS)
        await ended
        clearTimeout(timer)
        const line = said.slice('ready\n'.length)
        return line === '' ? undefined : (JSON.parse(line) as Reading)
      },
    }
  }
}

function args(options: ReaderOptions): string[] {
  return Object.entries(options).flatMap(([name, value]) =>
    value === true ? [`--${name}`] : value === false ? [] : [`--${name}`, String(value)],
  )
}
