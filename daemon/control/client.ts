/**
 * Speaks to the daemon that owns a cache, at the door that has the right for each call: the owner's where this process
 * may open it, else the group's.
 */
import { accessSync, constants } from 'node:fs'
import { Agent, request } from 'node:http'
import { connect } from 'node:net'
import { BobbinError, systemCode } from '../model/index.js'
import { readOwner } from '../store/index.js'
import type { CallerAnswer } from './callers.js'
import { type Door, doorsFor, type Right } from './doors.js'
import { errorOf } from './errors.js'
import type {
  CallerRequest,
  FindAnswer,
  FindBody,
  LeaseAnswer,
  LeaseBody,
  MountBody,
  MountFacts,
  ReleaseBody,
  ReloadBody,
  RenewAnswer,
  RenewBody,
  RoomBody,
  StatusFacts,
  SurroundingsFacts,
} from './schema.js'

/** A mount of a large package whose index has to be made again takes seconds. */
const TIMEOUT_MS = 120_000
const LIVEZ_TIMEOUT_MS = 5000

export class DaemonClient {
  /** Connections are kept: a loader asks hundreds of times a second. */
  readonly #agent = new Agent({ keepAlive: true, maxFreeSockets: 64 })

  readonly #paths: Readonly<Partial<Record<Door, string | undefined>>>
  readonly #mountsPath: string | undefined
  /** Found once per right. */
  readonly #open = new Map<Right, string>()

  /** `socketPath`: the owner's door, which has all rights. */
  constructor(
    readonly socketPath: string,
    readonly pid: number,
    others: { readonly leases?: string | undefined; readonly status?: string | undefined } = {},
    mountsPath?: string,
  ) {
    this.#paths = { control: socketPath, ...others }
    this.#mountsPath = mountsPath
  }

  /** Whether mounts are asked for at the door of those who are not the owner, which are this user's own. */
  get isCaller(): boolean {
    return this.#mountsPath !== undefined && !mayOpen(this.socketPath) && mayOpen(this.#mountsPath)
  }

  async mount(body: MountBody): Promise<MountFacts> {
    if (this.isCaller) {
      const { uid: _, gid: __, allowOther: ___, ...mount } = body
      return (await this.#askAsCaller({ mount }))!
    }
    // A registry that is away is waited for, as long as the daemon's I/O time-out says.
    return this.#call('control', 'POST', '/v1/mounts', body, 0)
  }

  async unmount(mountpoint: string, force: boolean): Promise<void> {
    if (this.isCaller) return void (await this.#askAsCaller({ unmount: { mountpoint, force } }))
    await this.#call('control', 'DELETE', '/v1/mounts', { mountpoint, force })
  }

  status(): Promise<StatusFacts> {
    return this.#call('status', 'GET', '/v1/status')
  }

  /** For the owner alone. */
  surroundings(): Promise<SurroundingsFacts> {
    return this.#call('control', 'GET', '/v1/surroundings')
  }

  async reload(body: ReloadBody): Promise<void> {
    await this.#call('control', 'POST', '/v1/reload', body)
  }

  async stop(force: boolean): Promise<void> {
    await this.#call('control', 'POST', '/v1/stop', { force })
  }

  /** However long it takes: the daemon gives up by itself what makes no progress. */
  leaseObjects(body: LeaseBody, signal?: AbortSignal): Promise<LeaseAnswer> {
    return this.#call('leases', 'POST', '/v1/objects/lease', body, 0, signal)
  }

  async releaseObjects(body: ReleaseBody): Promise<void> {
    await this.#call('leases', 'POST', '/v1/objects/release', body)
  }

  renewOwner(body: RenewBody): Promise<RenewAnswer> {
    return this.#call('leases', 'POST', '/v1/objects/renew', body, LIVEZ_TIMEOUT_MS)
  }

  findObjects(body: FindBody, signal?: AbortSignal): Promise<FindAnswer> {
    return this.#call('leases', 'POST', '/v1/objects/find', body, TIMEOUT_MS, signal)
  }

  async askRoom(body: RoomBody): Promise<void> {
    await this.#call('leases', 'POST', '/v1/room', body)
  }

  async isAlive(): Promise<boolean> {
    return this.#call('status', 'GET', '/livez', undefined, LIVEZ_TIMEOUT_MS).then(
      () => true,
      () => false,
    )
  }

  /** Throws ACCESS_DENIED where this process may open no door that has the right. */
  #doorFor(right: Right): string {
    const known = this.#open.get(right)
    if (known !== undefined) return known
    for (const door of doorsFor[right]) {
      const path = this.#paths[door]
      if (path === undefined || !mayOpen(path)) continue
      this.#open.set(right, path)
      return path
    }
    throw new BobbinError(
      'ACCESS_DENIED',
      right === 'control'
        ? `the daemon (process ${this.pid}) is another user's, and mounts, unmounts and stops for its owner alone: run this as the owner of ${this.socketPath}`
        : `the daemon (process ${this.pid}) is another user's, and its sockets (${this.socketPath}) are for its owner and group: join that group, or use a cache of your own (--cache)`,
    )
  }

  /** One line each way (native/session/callers.hpp). */
  async #askAsCaller(request: CallerRequest): Promise<MountFacts | null> {
    const socket = connect(this.#mountsPath!)
    socket.setTimeout(TIMEOUT_MS, () => socket.destroy(new Error('no answer in time')))
    let line = ''
    try {
      socket.write(`${JSON.stringify(request)}\n`)
      for await (const chunk of socket.setEncoding('utf8')) line += chunk
    } catch (error) {
      throw new BobbinError('DAEMON_UNAVAILABLE', `the daemon (process ${this.pid}) does not answer (${error})`)
    } finally {
      socket.destroy()
    }
    if (!line.endsWith('\n')) {
      throw new BobbinError(
        'DAEMON_UNAVAILABLE',
        `the daemon (process ${this.pid}) hung up: it starts again, or many ask at once; try again in a moment`,
      )
    }
    const answer = JSON.parse(line) as CallerAnswer
    if ('problem' in answer) throw errorOf(JSON.stringify(answer.problem), answer.problem.status)
    return answer.facts
  }

  async #call<Answer>(
    right: Right,
    method: string,
    path: string,
    body?: object,
    timeout = TIMEOUT_MS,
    signal?: AbortSignal,
  ): Promise<Answer> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    const socketPath = this.#doorFor(right)
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
          socketPath,
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
  return new DaemonClient(
    facts.socketPath,
    facts.pid,
    { leases: facts.leasesPath, status: facts.statusPath },
    facts.mountsPath,
  )
}

/** Also true of a socket that is not there: then the call says so. */
function mayOpen(path: string): boolean {
  try {
    accessSync(path, constants.W_OK)
    return true
  } catch (error) {
    return systemCode(error) !== 'EACCES'
  }
}
