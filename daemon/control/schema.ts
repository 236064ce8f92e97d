/** What goes over the daemon's socket: the schemas, and with them the types, of requests and answers. */
import { type Static, Type } from '@sinclair/typebox'
import { OPEN_MODE_WISHES } from '../mount/transport.js'

const Closed = { additionalProperties: false } as const

export const MountBody = Type.Object(
  {
    /** As `formatRegistry` writes it. */
    registry: Type.String(),
    package: Type.String(),
    /** In full: whoever asks has resolved it. */
    topHash: Type.String({ pattern: '^[0-9a-f]{64}$' }),
    /** Absolute. */
    mountpoint: Type.String({ pattern: '^/' }),
    quarantine: Type.Optional(Type.Boolean()),
    allowOther: Type.Optional(Type.Boolean()),
    uid: Type.Optional(Type.Integer({ minimum: 0 })),
    gid: Type.Optional(Type.Integer({ minimum: 0 })),
    umask: Type.Optional(Type.Integer({ minimum: 0, maximum: 0o777 })),
    /** For an overlay that stands on the mount and asks its modes who may write; nobody writes to the mount itself. */
    showsWriteBits: Type.Optional(Type.Boolean()),
    openMode: Type.Optional(Type.Union(OPEN_MODE_WISHES.map(mode => Type.Literal(mode)))),
    /** Extended attributes are listed; by default they are only answered by name. */
    listAttributes: Type.Optional(Type.Boolean()),
    /** The folder of the run that it is for: its access log is kept until the run has a record. */
    run: Type.Optional(Type.String({ pattern: '^/' })),
  },
  Closed,
)
export type MountBody = Static<typeof MountBody>

export const UnmountBody = Type.Object(
  { mountpoint: Type.String({ pattern: '^/' }), force: Type.Optional(Type.Boolean()) },
  Closed,
)
export type UnmountBody = Static<typeof UnmountBody>

/**
 * A line of a caller who is not the owner. Whose the mount is says the kernel, so nobody else does; and that of a run would
 * have its access log kept for as long as they like.
 */
export const CallerRequest = Type.Union([
  Type.Object({ mount: Type.Omit(MountBody, ['uid', 'gid', 'allowOther', 'run'], Closed) }, Closed),
  Type.Object({ unmount: UnmountBody }, Closed),
])
export type CallerRequest = Static<typeof CallerRequest>

export const StopBody = Type.Object({ force: Type.Optional(Type.Boolean()) }, Closed)
export type StopBody = Static<typeof StopBody>

/** What a daemon has from whoever started it, or reloaded it last: digests by name (surroundings.ts). */
export const SurroundingsFacts = Type.Object(
  { salt: Type.String(), digests: Type.Record(Type.String(), Type.String()) },
  Closed,
)
export type SurroundingsFacts = Static<typeof SurroundingsFacts>

export const ReloadBody = Type.Object(
  {
    /** All of it that matters, by name; what is not in it is unset. */
    environment: Type.Record(Type.String(), Type.String({ pattern: '^[^\\0]*$' })),
    ioTimeoutMs: Type.Integer({ minimum: 1 }),
    offline: Type.Boolean(),
    /** Without them, the daemon's own stay. */
    cacheBytesMax: Type.Optional(Type.Integer({ minimum: 0 })),
    freeBytesMin: Type.Optional(Type.Integer({ minimum: 0 })),
  },
  Closed,
)
export type ReloadBody = Static<typeof ReloadBody>

const Word = Type.String({ pattern: '^[A-Za-z0-9_.-]{1,64}$' })

export const LeaseBody = Type.Object(
  {
    owner: Word,
    lease: Word,
    registry: Type.String(),
    package: Type.String(),
    topHash: Type.String({ pattern: '^[0-9a-f]{64}$' }),
    inos: Type.Array(Type.Integer({ minimum: 1 }), { maxItems: 200_000 }),
    priority: Type.Union([Type.Literal('demand'), Type.Literal('ahead')]),
    /** Where bytes may be read from (daemon/registry/served.ts); default: where the door lets. */
    places: Type.Optional(
      Type.Object(
        {
          folders: Type.Array(Type.String({ pattern: '^/' })),
          buckets: Type.Union([Type.Literal('any'), Type.Array(Type.String())]),
        },
        Closed,
      ),
    ),
  },
  Closed,
)
export type LeaseBody = Static<typeof LeaseBody>

export const LeaseAnswer = Type.Object({
  failed: Type.Array(Type.Object({ ino: Type.Integer(), code: Type.String(), detail: Type.String() })),
})
export type LeaseAnswer = Static<typeof LeaseAnswer>

export const ReleaseBody = Type.Object(
  {
    owner: Word,
    leases: Type.Array(
      Type.Object(
        {
          lease: Word,
          /** Bytes until each object's next use, in the order of the inodes; negative: not known. */
          distances: Type.Optional(Type.Array(Type.Number())),
        },
        Closed,
      ),
      { maxItems: 100_000 },
    ),
  },
  Closed,
)
export type ReleaseBody = Static<typeof ReleaseBody>

/** `surroundings`: what the loader has from its start. */
export const OwnerFacts = Type.Object(
  { pid: Type.Integer(), socket: Type.String(), surroundings: Type.Optional(SurroundingsFacts) },
  Closed,
)
export type OwnerFacts = Static<typeof OwnerFacts>

export const RenewBody = Type.Object({ owner: Word, facts: Type.Optional(OwnerFacts) }, Closed)
export type RenewBody = Static<typeof RenewBody>

export const RenewAnswer = Type.Object({ leases: Type.Integer() })
export type RenewAnswer = Static<typeof RenewAnswer>

export const FindBody = Type.Object(
  { owner: Word, lease: Word, ids: Type.Array(Type.String({ maxLength: 100 }), { maxItems: 20_000 }) },
  Closed,
)
export type FindBody = Static<typeof FindBody>

export const RoomBody = Type.Object(
  {
    hold: Word,
    /** Named where there is no room. */
    what: Type.String({ pattern: '^[\\x20-\\x7e]{1,200}$' }),
    /** In all; 0: no more. */
    bytes: Type.Integer({ minimum: 0, maximum: 2 ** 50 }),
  },
  Closed,
)
export type RoomBody = Static<typeof RoomBody>

export const FindAnswer = Type.Object({
  found: Type.Array(Type.Union([Type.Object({ id: Type.String(), size: Type.Integer() }), Type.Null()])),
})
export type FindAnswer = Static<typeof FindAnswer>

export const LoaderFacts = Type.Object({
  owners: Type.Array(
    Type.Object({
      owner: Type.String(),
      pid: Type.Optional(Type.Integer()),
      socket: Type.Optional(Type.String()),
      leases: Type.Integer(),
      /** Of the objects that they hold, counted for each lease. */
      bytes: Type.Integer(),
      lastSeen: Type.String(),
      /** For the owner of the daemon alone. */
      surroundings: Type.Optional(SurroundingsFacts),
    }),
  ),
  leasedBytes: Type.Integer(),
})
export type LoaderFacts = Static<typeof LoaderFacts>

export const MountFacts = Type.Object({
  mountpoint: Type.String(),
  registry: Type.String(),
  package: Type.String(),
  topHash: Type.String(),
  transport: Type.String(),
  openMode: Type.String(),
  /** Why it is not the fastest. */
  openModeReason: Type.Optional(Type.String()),
  listsAttributes: Type.Boolean(),
  entries: Type.Integer(),
  bytes: Type.Integer(),
  mountedAt: Type.String(),
  /** The user whose mount it is, where that is not the owner of the cache. */
  uid: Type.Optional(Type.Integer()),
})
export type MountFacts = Static<typeof MountFacts>

export const StatusFacts = Type.Object({
  daemon: Type.Object({
    pid: Type.Integer(),
    /** bobbin-fuse, which started it and owns the mounts; null: it runs by itself. */
    supervisorPid: Type.Union([Type.Integer(), Type.Null()]),
    /** Of bobbin-fuse. */
    supervisorVersion: Type.Union([Type.String(), Type.Null()]),
    version: Type.String(),
    startedAt: Type.String(),
    cache: Type.String(),
    socket: Type.String(),
    log: Type.String(),
    /** Mounts that would end with bobbin-fuse, because the service manager cannot keep so many descriptors. */
    unkeptMounts: Type.Integer(),
    /** Why the daemon is not the one that lies at its paths (an upgrade that does not start); null: it is. For the owner alone. */
    notReplaced: Type.Union([Type.String(), Type.Null()]),
  }),
  /** What bobbin-fuse says of itself; null: the daemon runs by itself. */
  link: Type.Union([
    Type.Object({
      daemonsStarted: Type.Integer({ description: 'since bobbin-fuse was started' }),
      waiting: Type.Integer({ description: 'files that readers wait for' }),
      openObjects: Type.Integer(),
      openBytes: Type.Integer(),
      knownObjects: Type.Integer({ description: 'objects that it opens without asking the daemon' }),
    }),
    Type.Null(),
  ]),
  mounts: Type.Array(MountFacts),
  cache: Type.Object({
    bytes: Type.Integer(),
    limitBytes: Type.Integer(),
    objects: Type.Integer(),
    pinnedBytes: Type.Integer(),
    evictions: Type.Integer(),
    /** What lies beside the objects, as it was measured last; all of it counts against the limit. Bytes. */
    packagesBytes: Type.Integer(),
    plansBytes: Type.Integer(),
    logsBytes: Type.Integer(),
    otherBytes: Type.Integer(),
    lost: Type.Integer({ description: 'objects given up because the disk had lost what was written to it' }),
  }),
  fetch: Type.Object({
    objects: Type.Integer(),
    bytes: Type.Integer(),
    hits: Type.Integer(),
    refetches: Type.Integer(),
    refused: Type.Integer(),
    errors: Type.Integer(),
    inFlight: Type.Integer(),
    queued: Type.Integer(),
  }),
  loader: Type.Union([LoaderFacts, Type.Null()]),
  /** What the daemon has logged as errors, and bobbin-fuse as errors and warnings, the latest last; for the owner of the cache alone. */
  lastErrors: Type.Array(
    Type.Object({
      at: Type.String(),
      program: Type.Union([Type.Literal('daemon'), Type.Literal('bobbin-fuse')]),
      level: Type.Union([Type.Literal('warn'), Type.Literal('error')]),
      message: Type.String(),
      reason: Type.Optional(Type.String()),
      about: Type.Record(Type.String(), Type.String()),
    }),
  ),
})
export type StatusFacts = Static<typeof StatusFacts>
