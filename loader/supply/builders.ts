/**
 * Whose plan is made when: each client has its share of builders, and none can keep the others waiting by what it asks for.
 *
 * A client is a TCP address or, on a unix socket, where Node.js cannot tell users apart, a connection. A listener is one of
 * the sockets that the service listens on. So a container that opens many connections
 * to its own socket leaves a builder to those who come by another one.
 */
import { BobbinError } from '../../daemon/model/index.js'

export interface Client {
  readonly listener: unknown
  readonly name: unknown
}

/** Processes of up to 512 MiB each. */
const RUNNING_MAX = 3
const RUNNING_PER_LISTENER_MAX = 2
const WAITING_MAX = 64
/** Of one client; it has one builder at a time. */
const WAITING_PER_CLIENT_MAX = 4

interface Waiting {
  readonly client: Client
  readonly start: () => void
}

export class Builders {
  #waiting: Waiting[] = []
  /** Each a client of its own, since one may come again before it is gone from here. */
  readonly #running = new Set<Client>()

  /** Runs the job when it is its client's turn. Throws BUSY, INTERRUPTED when the signal fires before, and what it throws. */
  async run<T>(client: Client, signal: AbortSignal, job: () => Promise<T>): Promise<T> {
    const waitingOfClient = this.#waiting.filter(({ client: { name } }) => name === client.name).length
    if (waitingOfClient >= WAITING_PER_CLIENT_MAX || this.#waiting.length >= WAITING_MAX)
      throw new BobbinError('BUSY', `${this.#waiting.length} plans wait to be made: ask again`)
    const running = { ...client }
    await this.#turn(running, signal)
    try {
      return await job()
    } finally {
      this.#running.delete(running)
      this.#startNext()
    }
  }

  #turn(client: Client, signal: AbortSignal): Promise<void> {
    const gone = () => new BobbinError('INTERRUPTED', 'the client has gone')
    if (signal.aborted) return Promise.reject(gone())
    if (this.#mayStart(client)) {
      this.#running.add(client)
      return Promise.resolve()
    }
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.#waiting = this.#waiting.filter(other => other !== waiting)
        reject(gone())
      }
      const start = () => {
        signal.removeEventListener('abort', leave)
        this.#running.add(client)
        resolve()
      }
      const waiting = { client, start }
      this.#waiting.push(waiting)
      signal.addEventListener('abort', leave, { once: true })
    })
  }

  #mayStart({ listener, name }: Client): boolean {
    const running = [...this.#running]
    if (running.length >= RUNNING_MAX || running.some(other => other.name === name)) return false
    return running.filter(other => other.listener === listener).length < RUNNING_PER_LISTENER_MAX
  }

  /** The first that may: with one builder per client, those who ask once are not behind all that another one asks. */
  #startNext(): void {
    const next = this.#waiting.find(({ client }) => this.#mayStart(client))
    if (next === undefined) return
    this.#waiting = this.#waiting.filter(other => other !== next)
    next.start()
  }
}
