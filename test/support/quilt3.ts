/** The real quilt3 8.0.0, in a process of its own, with folders of its own for each server. */
import { join } from 'node:path'
import { runProgram } from './cli.js'
import { part, repository } from './parts.js'
import type { S3Server } from './s3-server.js'

/** What quilt3 says of a revision (quilt3_actions.py, `dump`). Metadata is for Python's eyes: numbers do not survive here. */
export interface Dump {
  readonly topHash: string
  readonly meta: unknown
  /** Metadata, by key without the final slash. */
  readonly directories: Readonly<Record<string, unknown>>
  /** In quilt3's order. */
  readonly entries: Readonly<Record<string, DumpedEntry>>
}

export interface DumpedEntry {
  readonly size: number
  readonly hashType: string
  readonly hash: string
  readonly physicalKey: string
  readonly meta: unknown
  /** Of the bytes that quilt3 read. */
  readonly sha256: string
}

/** minio syncs what it writes: a disk that others keep busy has held up a push for 100 s. */
const TIMEOUT_MS = 600_000

export class Quilt3 {
  readonly #environment: NodeJS.ProcessEnv

  /** `home` has quilt3's folders: it caches manifests by their address without the endpoint, so each server needs its own. */
  constructor(
    readonly server: S3Server,
    home: string,
  ) {
    this.#environment = {
      PATH: process.env.PATH,
      ...server.env,
      HOME: home,
      XDG_DATA_HOME: join(home, 'data'),
      XDG_CACHE_HOME: join(home, 'cache'),
      QUILT_DISABLE_USAGE_METRICS: 'true',
      QUILT_MINIMIZE_STDOUT: 'true',
    }
  }

  /** The action's answer as JSON text, which arguments may be, too: numbers beyond JavaScript's are compared by Python (`metadata_differences`). */
  async text(action: string, args: object | string): Promise<string> {
    const script = join(repository, 'test/support/quilt3_actions.py')
    const { status, stdout, stderr } = await runProgram(
      part('quilt3'),
      [script, action, typeof args === 'string' ? args : JSON.stringify(args)],
      {
        env: this.#environment,
        timeoutMs: TIMEOUT_MS,
      },
    )
    if (status === null) throw new Error(`quilt3 ${action} was killed, after ${TIMEOUT_MS / 1000} s at most: ${stderr}`)
    if (status !== 0) throw new Error(`quilt3 ${action} ended with ${status}: ${stderr}`)
    return stdout.trimEnd().split('\n').at(-1)!
  }

  async call<T>(action: string, args: object): Promise<T> {
    return JSON.parse(await this.text(action, args)) as T
  }

  /** quilt3's own command line. */
  async command(...args: string[]): Promise<{ readonly status: number | null; readonly stderr: string }> {
    return runProgram(join(part('quilt3'), '../quilt3'), args, { env: this.#environment })
  }
}
