/** Leases of paths that clients hold: let go when they say so, or when nothing was heard of them for a while. */
import { randomBytes } from 'node:crypto'
import { BobbinError } from '../../daemon/model/index.js'
import type { LeasedStep } from '../supply/ahead.js'

interface Session {
  /** By number, ascending. */
  readonly leases: Map<number, LeasedStep>
  next: number
  seenMs: number
}

/** Beyond it there are no new ones: else whoever opens many would have the leases of others let go. */
const SESSIONS_MAX = 10_000
const SWEEP_MS = 1000
/** What clients may call a session, and what a lease in one is called. */
export const SESSION = /^[A-Za-z0-9_]{8,32}$/
export const LEASE = /^([A-Za-z0-9_]{8,32})-(\d{1,15})$/

export class Sessions {
  readonly #sessions = new Map<string, Session>()
  readonly #timer: NodeJS.Timeout

  constructor(private readonly leaseTimeoutMs: number) {
    this.#timer = setInterval(() => this.#sweep(), SWEEP_MS)
    this.#timer.unref()
  }

  /** One that is not known (any more) is begun anew under its own name. Throws BUSY. */
  open(name = randomBytes(9).toString('base64url').replaceAll('-', '_')): string {
    // Numbers go on rising over a restart, so that an old lease names none of ours.
    const known = this.#sessions.get(name)
    if (known === undefined && this.#sessions.size >= SESSIONS_MAX)
      throw new BobbinError('BUSY', `${SESSIONS_MAX} clients hold paths here already: ask again later, or ask for tar`)
    const session = known ?? { leases: new Map(), next: Date.now(), seenMs: 0 }
    session.seenMs = Date.now()
    this.#sessions.set(name, session)
    return name
  }

  /** Names a lease; it is held from now on. */
  hold(name: string, leased: LeasedStep): string {
    const session = this.#sessions.get(this.open(name))!
    const number = session.next++
    session.leases.set(number, leased)
    return `${name}-${number}`
  }

  /** That lease, and all before it in its session; unknown ones are no error: whoever held them has been restarted. */
  release(text: string): void {
    const match = LEASE.exec(text)
    if (!match) throw new BobbinError('INVALID_ARGUMENT', `not a lease: ${JSON.stringify(text)}`)
    const session = this.#sessions.get(match[1]!)
    if (session === undefined) return
    session.seenMs = Date.now()
    for (const [number, leased] of session.leases) {
      if (number > Number(match[2])) break
      session.leases.delete(number)
      leased.release()
    }
  }

  /** All of a session's leases, and the session itself; an unknown one is no error, as above. */
  end(name: string): void {
    for (const leased of this.#sessions.get(name)?.leases.values() ?? []) leased.release()
    this.#sessions.delete(name)
  }

  get leases(): number {
    let sum = 0
    for (const { leases } of this.#sessions.values()) sum += leases.size
    return sum
  }

  close(): void {
    clearInterval(this.#timer)
    for (const name of [...this.#sessions.keys()]) this.end(name)
  }

  #sweep(): void {
    for (const [name, { seenMs }] of this.#sessions) {
      if (Date.now() - seenMs >= this.leaseTimeoutMs) this.end(name)
    }
  }
}
