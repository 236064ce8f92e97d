import type { DaemonOptions } from '../../daemon/control/daemon.js'
import type { RevisionAddress, Served } from '../../daemon/registry/served.js'

export interface MountedAt {
  readonly address: RevisionAddress
  /** As the clients see it. */
  readonly folder: string
}

export interface LoaderOptions {
  readonly daemon: DaemonOptions
  /**
   * Where its own files are: plans, their tables, deliveries, manifests. `undefined`: in the daemon's cache. A loader of
   * another user than the daemon's reads the store there, and cannot write.
   */
  readonly stateDir?: string | undefined
  readonly defaultRegistry?: string | undefined
  /** What every door gives. Everything: then there is only a socket that this user alone may open. */
  readonly served: Served
  /** Where clients have packages mounted that are served: they read there what they get as paths, and need no folder of the store. */
  readonly mounted?: readonly MountedAt[]
  /** Where to listen; `undefined`: not on a unix socket. */
  readonly socketPath?: string | undefined
  /** Sockets that somebody else listens on for us (systemd). */
  readonly listenFds: readonly number[]
  /** TCP, too; needs a token. */
  readonly listen?: { readonly host: string; readonly port: number } | undefined
  readonly token?: string | undefined
  /** Until the first step of an answer is here; then 503. */
  readonly stepTimeoutMs: number
  /** A session of path leases that is not heard of for so long loses them. */
  readonly leaseTimeoutMs: number
  /** For the end, after SIGTERM. */
  readonly drainTimeoutMs: number
  /** Leased ahead of all streams together; `undefined`: AHEAD_BYTES, or a quarter of the store where that is less. */
  readonly aheadBytesMax?: number | undefined
  /** A client that takes no byte of an answer for so long is cut off. */
  readonly stuckTimeoutMs: number
  /** Answers under way; each holds up to two chunks (4 MiB). */
  readonly streamsMax: number
  /** Where what was delivered is written down; `undefined`: in the cache; false: nowhere. */
  readonly deliveriesPath?: string | false | undefined
  /** Hash every object again as it is served. */
  readonly rehash: boolean
}

export const LOADER_DEFAULTS = {
  stepTimeoutMs: 30_000,
  leaseTimeoutMs: 120_000,
  drainTimeoutMs: 30_000,
  // Training may rest while it evaluates or saves; a client that has died is noticed by its connection.
  stuckTimeoutMs: 600_000,
  // 8 ranks of 16 workers, each with an answer on its way: 1 GiB if none of them reads.
  streamsMax: 256,
} as const

/** A minute of a 1 Gb/s link, a few batches of the largest samples. */
export const AHEAD_BYTES = 4 * 2 ** 30

export const TOKEN_HELP =
  'at least 16 characters, in a file (--token-file) or in BOBBIN_LOADER_TOKEN: openssl rand -hex 32 > token'
