/**
 * What a caller is told who is not the owner. An error names what was found: a hash, a size, a path, and already its
 * code says whether something exists. To a caller who chose what to ask for, each of these is an answer about files that
 * are none of their business. So a stranger gets one and the same error for what is not served, not there, or failed its
 * check, with a number under which the log has the rest.
 *
 * Errors that are about the caller's own words, or that pass, go out; the table is total, so a new code has to say which it
 * is before it compiles.
 */
import { randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { BobbinError, type ErrorCode, type Log } from '../model/index.js'

/**
 * `told`: it repeats what the caller said. `temporary`: to know that it passes helps, but the message may name what was
 * looked at. `hidden`: not even the code.
 */
const telling = {
  INVALID_ARGUMENT: 'told',
  ENTRY_NOT_FOUND: 'told',
  PLAN_NOT_FOUND: 'told',
  CURSOR_FOREIGN: 'told',
  UNAUTHENTICATED: 'told',
  TOO_LARGE: 'told',
  BUSY: 'told',
  NOT_READY: 'told',
  NOT_SERVED: 'told',
  INTERRUPTED: 'told',
  UPSTREAM_UNAVAILABLE: 'temporary',
  STORE_FULL: 'temporary',
  DAEMON_UNAVAILABLE: 'temporary',
  REGISTRY_NOT_FOUND: 'hidden',
  PACKAGE_NOT_FOUND: 'hidden',
  REVISION_NOT_FOUND: 'hidden',
  REVISION_AMBIGUOUS: 'hidden',
  REVISION_CONFLICT: 'hidden',
  OBJECT_GONE: 'hidden',
  NOT_SUPPORTED: 'hidden',
  MANIFEST_CORRUPT: 'hidden',
  OBJECT_CORRUPT: 'hidden',
  FOLDER_DIFFERS: 'hidden',
  PACKAGE_REFUSED: 'hidden',
  INDEX_DAMAGED: 'hidden',
  ACCESS_DENIED: 'hidden',
  LOCAL_IO: 'hidden',
  ALREADY_MOUNTED: 'hidden',
  NOT_MOUNTED: 'hidden',
  MOUNTPOINT_UNUSABLE: 'hidden',
  CACHE_IN_USE: 'hidden',
  FUSE_UNAVAILABLE: 'hidden',
  NOT_A_DIRECTORY: 'hidden',
  IS_A_DIRECTORY: 'hidden',
  NO_ATTRIBUTE: 'hidden',
  READ_ONLY: 'hidden',
  INTERNAL: 'hidden',
} as const satisfies Record<ErrorCode, 'told' | 'temporary' | 'hidden'>

/** Failures that are remembered, so that one which is asked for again and again is one line of the log per minute. */
const REMEMBERED_MAX = 1000
const REMEMBERED_MS = 60_000

export class Concealer {
  /** By what happened: its number in the log. */
  readonly #logged = new LRUCache<string, string>({ max: REMEMBERED_MAX, ttl: REMEMBERED_MS })

  /** `server`: whose log it is, in words for the caller. */
  constructor(
    private readonly server: string,
    private readonly log: Log,
  ) {}

  /** Of what was done with the caller's own words: an error that is about them goes out as it is. */
  conceal(error: unknown): BobbinError {
    if (error instanceof BobbinError && telling[error.code] === 'told') return error
    return this.concealFound(error)
  }

  /** Of what was looked up for the caller, where any word could be about what was found. */
  concealFound(error: unknown): BobbinError {
    const code = error instanceof BobbinError ? error.code : 'INTERNAL'
    if (code === 'NOT_SERVED' || code === 'INTERRUPTED') return error as BobbinError
    const text = error instanceof Error ? error.message : String(error)
    const key = `${code} ${text}`
    let number = this.#logged.get(key)
    if (number === undefined) {
      number = randomBytes(6).toString('hex')
      this.#logged.set(key, number)
      const stack = code === 'INTERNAL' && error instanceof Error ? error.stack : undefined
      this.log.warn(
        { number, code, error: text, ...(stack && { stack }) },
        'a caller was not told why something failed',
      )
    }
    if (telling[code] === 'temporary' || code === 'BUSY' || code === 'NOT_READY')
      return new BobbinError(
        code,
        `it cannot be had at the moment: ask again; ${this.server}'s log has the reason as ${number}`,
      )
    return new BobbinError(
      'NOT_SERVED',
      `it is not served here, is not there, or failed its check: ${this.server}'s log has the reason as ${number}`,
    )
  }
}
