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
    openMode: Type.Optional(Type.Union(OPEN_MODE_WISHES.map(mode => Type.Literal(mode)))),
  },
  Closed,
)
export type MountBody = Static<typeof MountBody>

export const UnmountBody = Type.Object(
  { mountpoint: Type.String({ pattern: '^/' }), force: Type.Optional(Type.Boolean()) },
  Closed,
)
export type UnmountBody = Static<typeof UnmountBody>

export const StopBody = Type.Object({ force: Type.Optional(Type.Boolean()) }, Closed)
export type StopBody = Static<typeof StopBody>

export const MountFacts = Type.Object({
  mountpoint: Type.String(),
  registry: Type.String(),
  package: Type.String(),
  topHash: Type.String(),
  transport: Type.String(),
  openMode: Type.String(),
  /** Why it is not the fastest. */
  openModeReason: Type.Optional(Type.String()),
  entries: Type.Integer(),
  bytes: Type.Integer(),
  mountedAt: Type.String(),
})
export type MountFacts = Static<typeof MountFacts>

export const StatusFacts = Type.Object({
  daemon: Type.Object({
    pid: Type.Integer(),
    /** bobbin-fuse, which started it and owns the mounts; null: it runs by itself. */
    supervisorPid: Type.Union([Type.Integer(), Type.Null()]),
    version: Type.String(),
    startedAt: Type.String(),
    cache: Type.String(),
    socket: Type.String(),
    log: Type.String(),
  }),
  mounts: Type.Array(MountFacts),
  cache: Type.Object({
    bytes: Type.Integer(),
    limitBytes: Type.Integer(),
    objects: Type.Integer(),
    pinnedBytes: Type.Integer(),
    evictions: Type.Integer(),
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
  loader: Type.Null(),
  runs: Type.Array(Type.Unknown()),
})
export type StatusFacts = Static<typeof StatusFacts>
