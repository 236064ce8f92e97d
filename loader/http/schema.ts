/** Schemas of requests and answers, and with them their types; protocol.md says what they mean. */
import { type Static, Type } from '@sinclair/typebox'
import { LEASE, SESSION } from './sessions.js'

const Closed = { additionalProperties: false } as const

export const PlanId = Type.String({ pattern: '^[0-9a-f]{64}$' })

export const PlanParams = Type.Object({ id: PlanId })

export const PlanFacts = Type.Object({
  planId: PlanId,
  plan: Type.Unknown(),
  package: Type.String(),
  topHash: Type.String(),
  samples: Type.Integer(),
  entries: Type.Integer(),
  bytes: Type.Integer(),
  bytesCached: Type.Union([Type.Integer(), Type.Null()]),
  stepsPerEpoch: Type.Integer(),
  maxStepBytes: Type.Integer(),
  shardsPerEpoch: Type.Integer(),
  stepsPerShard: Type.Integer(),
  shards: Type.String(),
  objects: Type.String(),
})
export type PlanFacts = Static<typeof PlanFacts>

const SessionName = Type.String({ pattern: SESSION.source })
const LeaseName = Type.String({ pattern: LEASE.source })

/** Query parameters come as text. */
const Whole = Type.String({ pattern: '^[0-9]{1,10}$' })

export const BatchesQuery = Type.Object(
  {
    cursor: Type.Optional(Type.String({ maxLength: 256 })),
    epoch: Type.Optional(Whole),
    step: Type.Optional(Whole),
    rank: Type.Optional(Whole),
    world: Type.Optional(Whole),
    n: Type.Optional(Whole),
    stride: Type.Optional(Whole),
    session: Type.Optional(SessionName),
    release: Type.Optional(LeaseName),
  },
  Closed,
)
export type BatchesQuery = Static<typeof BatchesQuery>

export const SamplesBody = Type.Object(
  {
    epoch: Type.Optional(Type.Integer({ minimum: 0 })),
    positions: Type.Array(Type.Integer({ minimum: 0 }), { minItems: 1, maxItems: 100_000 }),
    session: Type.Optional(SessionName),
    release: Type.Optional(LeaseName),
  },
  Closed,
)
export type SamplesBody = Static<typeof SamplesBody>

export const CursorBody = Type.Object({ plan: PlanId, cursor: Type.String({ maxLength: 256 }) }, Closed)
export type CursorBody = Static<typeof CursorBody>

export const CursorFacts = Type.Object({
  epoch: Type.Integer(),
  step: Type.Integer(),
  position: Type.Integer(),
  stepsLeft: Type.Integer(),
  samplesLeft: Type.Integer(),
})
export type CursorFacts = Static<typeof CursorFacts>

export const SessionParams = Type.Object({ session: SessionName })
export type SessionParams = Static<typeof SessionParams>

export const ReleaseBody = Type.Object({ lease: LeaseName }, Closed)
export type ReleaseBody = Static<typeof ReleaseBody>

export const ListBody = Type.Object(
  {
    package: Type.Optional(Type.String()),
    topHash: Type.Optional(Type.String({ pattern: '^[0-9a-f]{64}$' })),
    entries: Type.Array(
      Type.Object(
        {
          key: Type.Optional(Type.String()),
          hash: Type.Optional(Type.String({ pattern: '^[0-9a-f]{64}$' })),
          start: Type.Optional(Type.Integer({ minimum: 0 })),
          length: Type.Optional(Type.Integer({ minimum: 0 })),
          opaque: Type.Optional(Type.Unknown()),
        },
        Closed,
      ),
      { minItems: 1, maxItems: 10_000 },
    ),
    onMissing: Type.Optional(Type.Union([Type.Literal('fail'), Type.Literal('mark')])),
  },
  Closed,
)
export type ListBody = Static<typeof ListBody>

export const EntryParams = Type.Object({ topHash: PlanId, '*': Type.String() })
export const ObjectParams = Type.Object({ hash: PlanId })
export const ShardParams = Type.Object({ name: Type.String({ maxLength: 200 }) })
