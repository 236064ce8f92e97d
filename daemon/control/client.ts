/** Speaks to the daemon that owns a cache. */
import { Agent, request } from 'node:http'
import { BobbinError } from '../model/index.js'
import { readOwner } from '../store/index.js'
import { errorOf } from './errors.js'
import type {
  FindAnswer,
  FindBody,
  LeaseAnswer,
  LeaseBody,
  MountBody,
  MountFacts,
  ReleaseBody,
  RenewAnswer,
  RenewBody,
  StatusFacts,
} from './schema.js'

/** A mount of a large package whose index has to be made again takes seconds; nothing takes longer. */
const TIMEOUT_MS = 120_000
const LIVEZ_TIMEOUT_MS = 5000

export class DaemonClient {
  /** Connections are kept: a loader asks hundreds of times a second. */
  readonly #agent = new Agent({ keepAlive: true, maxFreeSockets: 64 })

  constructor(
    readonly socketPath: string,
    readonly pid: number,
  ) {}

  mount(body: MountBody): Promise<MountFacts> {
    return this.#call('POST', '/v1/mounts', body)
  }

  async unmount(mountpoint: string, force: boolean): Promise<void> {
    await this.#call('DELETE', '/v1/mounts', { mountpoint, force })
  }

  status(): Promise<StatusFacts> {
    return this.#call('GET', '/v1/status')
  }

  async stop(force: boolean): Promise<void> {
    await this.#call('POST', '/v1/stop', { force })
  }

  /** However long it takes: the daemon gives up by itself what makes no progress. */
  leaseObjects(body: LeaseBody, signal?: AbortSignal): Promise<LeaseAnswer> {
    return this.#call('POST', '/v1/objects/lease', body, 0, signal)
  }

  async releaseObjects(body: ReleaseBody): Promise<void> {
    await this.#call('POST', '/v1/objects/release', body)
  }

  renewOwner(body: RenewBody): Promise<RenewAnswer> {
    return this.#call('POST', '/v1/objects/renew', body, LIVEZ_TIMEOUT_MS)
  }

  findObjects(body: FindBody, signal?: AbortSignal): Promise<FindAnswer> {
    return this.#call('POST', '/v1/objects/find', body, TIMEOUT_MS, signal)
  }

  async isAlive(): Promise<boolean> {
    return this.#call('GET', '/livez', undefined, LIVEZ_TIMEOUT_MS).then(
      () => true,
      () => false,
    )
  }

  #call<Answer>(
    method: string,
    path: string,
    body?: object,
    timeout = TIMEOUT_MS,
    signal?: AbortSignal,
  ): Promise<Answer> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    return new Promise((resolve, reject) => {
      const fail = (reason: string, cause?: unknown) =>
        reject(
          new BobbinError(
            'DAEMON_UNAVAILABLE',
            `the daemon (process ${this.pid}) ${reason}; its log is daemon.log in the cache folder`,
            { cause },
          ),
        )
      const call = request(
        {
          socketPath: this.socketPath,
          method,
          path,
          timeout,
          agent: this.#agent,
          ...(signal && { signal }),
          headers:
            text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) },
        },
        response => {
          let answer = ''
          response.setEncoding('utf8')
          response.on('data', chunk => {
            answer += chunk
          })
          response.once('error', error => fail('broke off its answer', error))
          response.once('end', () => {
            const status = response.statusCode ?? 0
            if (status >= 400) return reject(errorOf(answer, status))
            resolve((answer === '' ? undefined : JSON.parse(answer)) as Answer)
          })
        },
      )
      call.once('timeout', () => call.destroy(new Error('no answer in time')))
      call.once('error', error => fail(`does not answer (${error.message})`, error))
      call.end(text)
    })
  }
}

/** A client of the daemon that owns the cache; `undefined` when nobody, or no daemon, owns it. */
export function findDaemon(cacheDir: string): DaemonClient | undefined {
  const { isHeld, facts } = readOwner(cacheDir)
  if (!isHeld || facts?.socketPath === undefined) return undefined
  return new DaemonClient(facts.socketPath, facts.pid)
}
