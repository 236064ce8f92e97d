/** What goes over the daemon's socket, as schemas that are types as well. Field names are promises (`--json`). */
import { type Static, Type } from '@sinclair/typebox'

/** Unknown fields are refused: a misspelt option must not be ignored. */
const strict = { additionalProperties: false } as const

export const MountOptionsBody = Type.Object(
  {
    /** Default: the daemon runs as root. */
    allowOther: Type.Optional(Type.Boolean()),
    /** Default: the daemon's. */
    uid: Type.Optional(Type.Integer({ minimum: 0, maximum: 0xffff_fffe })),
    gid: Type.Optional(Type.Integer({ minimum: 0, maximum: 0xffff_fffe })),
    /** Mode bits to take away. Default: 0. */
    umask: Type.Optional(Type.Integer({ minimum: 0, maximum: 0o777 })),
  },
  strict,
)

export const MountBody = Type.Object(
  {
    /** `s3://BUCKET` or `file:///DIR`. */
    registry: Type.String(),
    package: Type.String(),
    /** In full: what a mount shows never depends on when it was made. */
    topHash: Type.String(),
    /** Absolute. */
    mountpoint: Type.String(),
    options: Type.Optional(MountOptionsBody),
    quarantine: Type.Optional(Type.Boolean()),
  },
  strict,
)
export type MountBody = Static<typeof MountBody>

export const UnmountBody = Type.Object(
  {
    mountpoint: Type.String(),
    /** Also while files are open. */
    force: Type.Optional(Type.Boolean()),
  },
  strict,
)
export type UnmountBody = Static<typeof UnmountBody>

export const MountFacts = Type.Object({
  mountpoint: Type.String(),
  registry: Type.String(),
  package: Type.String(),
  topHash: Type.String(),
  transport: Type.String(),
  openMode: Type.String(),
  entries: Type.Integer(),
  bytes: Type.Integer(),
})
export type MountFacts = Static<typeof MountFacts>

const count = Type.Integer({ minimum: 0 })

export const Status = Type.Object({
  daemon: Type.Object({
    pid: Type.Integer(),
    version: Type.String(),
    /** RFC 3339. */
    startedAt: Type.String(),
    cache: Type.String(),
    socket: Type.String(),
  }),
  mounts: Type.Array(MountFacts),
  cache: Type.Object({ bytes: count, limitBytes: count, objects: count, pinnedBytes: count }),
  fetch: Type.Object({
    objects: count,
    bytes: count,
    hits: count,
    refetches: count,
    refused: count,
    errors: count,
    inFlight: count,
    queued: count,
  }),
  /** Not there yet. */
  loader: Type.Null(),
  runs: Type.Array(Type.Unknown()),
})
export type Status = Static<typeof Status>

export const Stopped = Type.Object({
  unmounted: Type.Array(Type.String()),
  /** Still open somewhere: whoever reads there gets errors when the daemon has gone. */
  busy: Type.Array(Type.String()),
})
export type Stopped = Static<typeof Stopped>
