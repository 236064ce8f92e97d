/**
 * Keeps what a provider gave until shortly before it expires. Then the provider is asked again behind the scenes, so that no reader
 * waits for it; only after the expiry do readers wait. Callers share one question. No question takes longer than its time.
 */
import { CredentialsProviderError } from '@smithy/core/config'
import { BobbinError, formatDuration } from '../model/index.js'
import { reasonOf } from './errors.js'
import { failureClass, SilenceError } from './failure-class.js'
import type { Identity } from './identity.js'

/** AWS gives new ones from five minutes before the expiry on, at least. */
const RENEW_BEFORE_MS = 5 * 60_000
/** Between two questions behind the scenes, of which the first one failed. */
const ASK_PAUSE_MS = 10_000

export class KeptIdentity {
  #present: Identity | undefined
  #question: Promise<Identity> | undefined
  #askAgainAt = -Infinity

  /** `origin`: whose identity it is, for messages. */
  constructor(
    private readonly ask: () => Promise<Identity>,
    private readonly origin: string,
    private readonly timeoutMs: number,
  ) {}

  /** Throws UPSTREAM_UNAVAILABLE where asking again may help, else a CredentialsProviderError, as the SDK's providers do. */
  get = async (): Promise<Identity> => {
    const leftMs = (this.#present?.expiration?.getTime() ?? Infinity) - Date.now()
    if (this.#present === undefined || leftMs <= 0) return await this.#renew()
    if (leftMs < RENEW_BEFORE_MS && performance.now() >= this.#askAgainAt) this.#renew().catch(() => {})
    return this.#present
  }

  #renew(): Promise<Identity> {
    this.#question ??= this.#bounded()
      .then(identity => {
        this.#present = identity
        return identity
      })
      .finally(() => {
        this.#question = undefined
        this.#askAgainAt = performance.now() + ASK_PAUSE_MS
      })
    return this.#question
  }

  async #bounded(): Promise<Identity> {
    let timer: NodeJS.Timeout | undefined
    const silence = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(
        () => reject(new SilenceError(`no answer within ${formatDuration(this.timeoutMs)}`)),
        this.timeoutMs,
      )
    })
    try {
      return await Promise.race([this.ask(), silence])
    } catch (error) {
      if (error instanceof BobbinError) throw error
      // What a service says of its refusal is more than its code.
      const reason = error instanceof Error && error.message !== '' ? error.message : reasonOf(error)
      if (failureClass(error) === 'passes') {
        throw new BobbinError('UPSTREAM_UNAVAILABLE', `cannot get credentials from ${this.origin}: ${reason}`, {
          cause: error,
        })
      }
      const failure = new CredentialsProviderError(`${this.origin}: ${reason}`, { tryNextLink: false })
      throw Object.assign(failure, { cause: error })
    } finally {
      clearTimeout(timer)
    }
  }
}
