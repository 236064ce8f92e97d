/** Requests to one sidecar over kept connections, on a unix socket or TCP; and how long to go on asking. */
import { Agent, type IncomingMessage, request } from 'node:http'
import { join, resolve } from 'node:path'
import { pipeline, type Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { createGunzip } from 'node:zlib'
import { xdgFolder } from '../../daemon/model/index.js'
import { Cut, damaged, LoaderError } from './errors.js'

/** Where systemd/bobbin-loader.socket listens. */
const UNIT_SOCKET = '/run/bobbin-loader/loader.sock'
/** More than the sidecar's own --step-timeout (30 s), after which it says that it needs more time. */
const SILENCE_MS = 120_000
/** For a sidecar that is just starting. */
const START_MS = 30_000
const PROBLEM_BYTES_MAX = 65_536

/** No socket is there (yet). */
const ABSENT = new Set(['ENOENT', 'ENOTDIR'])
/** Asking again does not help. */
const PERMANENT = new Set(['EACCES', 'EPERM', 'ELOOP', 'ENAMETOOLONG', 'EPROTOTYPE'])

type Where = { readonly socketPath: string } | { readonly host: string; readonly port: number }

export interface Question {
  readonly method: 'GET' | 'POST' | 'DELETE'
  readonly path: string
  readonly body?: unknown
  readonly accept?: string
}

export class Connection {
  readonly #agent = new Agent({ keepAlive: true, timeout: SILENCE_MS })
  readonly #headers: Readonly<Record<string, string>>
  #where: Where
  /** When nobody said where it is: the sockets to choose from, each time anew until one of them has answered. */
  #choices: readonly string[] = []
  #address: string

  /**
   * `unix:/path` or `http://host:port`; without it BOBBIN_SIDECAR, then the sockets of `ownSockets`. A token comes from the
   * URL (`http://bobbin:TOKEN@host:port`) or from BOBBIN_LOADER_TOKEN. Throws INVALID_ARGUMENT.
   */
  constructor(sidecar: string | undefined) {
    let text = sidecar || process.env.BOBBIN_SIDECAR
    if (!text) {
      this.#choices = ownSockets()
      text = this.#choices[0]!
    }
    const socketPath = /^(?:unix:)?(\/.*)$/.exec(text)?.[1]
    if (socketPath !== undefined) {
      this.#where = { socketPath }
      this.#headers = {}
      this.#address = `unix:${socketPath}`
      return
    }
    const url = URL.canParse(text) ? new URL(text) : undefined
    if (url?.protocol !== 'http:')
      throw new LoaderError(
        'INVALID_ARGUMENT',
        `a sidecar is unix:/path or http://host:port, not ${JSON.stringify(text)}`,
      )
    const token = decodeURIComponent(url.password) || process.env.BOBBIN_LOADER_TOKEN
    this.#where = { host: url.hostname.replace(/^\[|\]$/g, ''), port: Number(url.port || 80) }
    this.#headers = token ? { authorization: `Bearer ${token}` } : {}
    this.#address = `http://${url.host}`
  }

  /** As people write it, without the token. */
  get address(): string {
    return this.#address
  }

  /** An answer below 300: read it to its end. Throws LoaderError for a problem, Cut where nobody answers. */
  async send(question: Question): Promise<Readable> {
    const response = await this.#answer(question)
    const body = this.#plain(response)
    if (response.statusCode! < 300) return body
    throw problemOf(response, await bytesOf(body))
  }

  /** The body as the sidecar gave it: a proxy on the way may have encoded it, though nobody asked. Throws ANSWER_DAMAGED. */
  #plain(response: IncomingMessage): Readable {
    const encoding = (response.headers['content-encoding'] ?? 'identity').toLowerCase()
    if (encoding === 'identity') return response
    // What goes wrong is thrown where it is read.
    if (encoding === 'gzip' || encoding === 'x-gzip') return pipeline(response, createGunzip(), () => {})
    response.destroy()
    throw damaged(
      `the answer from ${this.address} came with the content-encoding ${encoding}, which was not asked for: tell the proxy on the way to pass such answers as they are`,
    )
  }

  /** Throws Cut, and SIDECAR_UNREACHABLE when asking again is of no use. */
  async #answer(question: Question): Promise<IncomingMessage> {
    if (this.#choices.length === 0) {
      try {
        return await this.#request(this.#where, question)
      } catch (error) {
        const code = codeOf(error)
        if (PERMANENT.has(code)) throw unreachable(`this user may not open ${this.address} (${code})`, error)
        throw error
      }
    }
    const problems: string[] = []
    let denied = 0
    for (const socketPath of this.#choices) {
      try {
        const response = await this.#request({ socketPath }, question)
        this.#where = { socketPath }
        this.#address = `unix:${socketPath}`
        this.#choices = []
        return response
      } catch (error) {
        const code = codeOf(error)
        if (PERMANENT.has(code)) {
          denied++
          problems.push(`this user may not open ${socketPath} (${code})`)
        } else if (ABSENT.has(code)) problems.push(`there is no socket ${socketPath}`)
        else throw error
      }
    }
    const reason = problems.join(', ')
    // This user's own loader may be just starting.
    throw denied === this.#choices.length ? unreachable(reason) : new Cut(reason)
  }

  #request(where: Where, { method, path, body, accept = '*/*' }: Question): Promise<IncomingMessage> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    return new Promise((resolve, reject) => {
      const call = request({
        ...where,
        agent: this.#agent,
        method,
        path,
        headers: {
          ...this.#headers,
          accept,
          ...(text !== undefined && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
        },
      })
      call.setTimeout(SILENCE_MS, () => call.destroy(new Error(`nothing came for ${SILENCE_MS / 1000} s`)))
      call.once('error', error => reject(new Cut(`${this.address}: ${error.message}`, { cause: error })))
      call.once('response', resolve)
      call.end(text)
    })
  }

  /** One document; `undefined` for an empty answer. Throws as `send`. */
  async document<T>(question: Question): Promise<T> {
    const text = (await bytesOf(await this.send(question))).toString('utf8')
    try {
      return (text === '' ? undefined : JSON.parse(text)) as T
    } catch {
      const { method, path } = question
      throw damaged(
        `what answered ${method} ${path} at ${this.address} may be no sidecar: it is not JSON (${JSON.stringify(text.slice(0, 40))})`,
      )
    }
  }

  /** A document, as often as it takes. Throws LoaderError. */
  async ask<T>(question: Question, patienceMs = START_MS): Promise<T> {
    for (const patience = new Patience(this, patienceMs); ; ) {
      try {
        return await this.document<T>(question)
      } catch (error) {
        await patience.wait(error)
      }
    }
  }

  close(): void {
    this.#agent.destroy()
  }
}

/**
 * Where `bobbin loader` listens unless it is told to listen elsewhere: in the cache, or as a systemd unit. The cache is
 * the command line's (cli/settings.ts), but for its config file.
 */
function ownSockets(): string[] {
  const { BOBBIN_CACHE, CACHE_DIRECTORY } = process.env
  const cache = BOBBIN_CACHE || CACHE_DIRECTORY?.split(':')[0] || join(xdgFolder('XDG_CACHE_HOME', '.cache'), 'bobbin')
  return [join(resolve(cache), 'loader', 'loader.sock'), UNIT_SOCKET]
}

function codeOf(error: unknown): string {
  const cause = error instanceof Cut ? (error.cause as { readonly code?: unknown } | undefined) : undefined
  return String(cause?.code ?? '')
}

function unreachable(reason: string, cause?: unknown): LoaderError {
  return new LoaderError(
    'SIDECAR_UNREACHABLE',
    `${reason}: is \`bobbin loader\` running there, for this user, and is its socket bound into this container? BOBBIN_SIDECAR says where it is`,
    { cause },
  )
}

/** All of an answer. Throws Cut when it ends too early. */
export async function bytesOf(response: Readable): Promise<Buffer> {
  const chunks: Buffer[] = []
  try {
    for await (const chunk of response) chunks.push(chunk as Buffer)
  } catch (error) {
    throw new Cut('the answer was cut', { cause: error })
  }
  return Buffer.concat(chunks)
}

function problemOf({ statusCode = 0, headers }: IncomingMessage, body: Buffer): LoaderError {
  const retryAfter = Number(headers['retry-after'] ?? 1)
  const isTemporary = statusCode === 429 || statusCode === 503
  const more = { status: statusCode, ...(isTemporary && { retryAfterMs: 1000 * (retryAfter >= 0 ? retryAfter : 1) }) }
  try {
    const { code, detail } = JSON.parse(body.toString('utf8', 0, PROBLEM_BYTES_MAX))
    return new LoaderError(String(code), String(detail), more)
  } catch {
    return new LoaderError('SIDECAR_UNREACHABLE', `${statusCode}: ${body.toString('utf8', 0, 200)}`, more)
  }
}

const FIRST_MS = 50
const LONGEST_MS = 5000

/** Waits longer each time, until `ms` have passed without progress. */
export class Patience {
  #since: number | undefined
  #next = FIRST_MS

  constructor(
    private readonly of: Pick<Connection, 'address'>,
    private readonly ms: number,
  ) {}

  progress(): void {
    this.#since = undefined
    this.#next = FIRST_MS
  }

  /** Returns when it is time to ask again; throws what the matter is when that is of no use. */
  async wait(error: unknown): Promise<void> {
    const retryAfterMs = error instanceof LoaderError ? error.retryAfterMs : undefined
    if (!(error instanceof Cut) && retryAfterMs === undefined) throw error
    this.#since ??= performance.now()
    if (performance.now() - this.#since >= this.ms) {
      if (error instanceof LoaderError) throw error
      const reason = error instanceof Error ? error.message : String(error)
      throw unreachable(`no answer from ${this.of.address} for ${this.ms / 1000} s (${reason})`, error)
    }
    // Many clients of one sidecar do not come back at the same moment.
    await sleep(retryAfterMs ?? this.#next * (0.5 + Math.random() / 2))
    this.#next = Math.min(this.#next * 2, LONGEST_MS)
  }
}
