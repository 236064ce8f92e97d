/**
 * A plan: what is trained on, in which order, in which batches. It is named by the SHA-256 of its canonical form
 * (RFC 8785), so two sidecars give one plan one id; where the bytes are, and how many ranks there are, is no part of it.
 */
import { createHash } from 'node:crypto'
import { type Static, Type } from '@sinclair/typebox'
import canonicalize from 'canonicalize'
import { BobbinError, type Brand, type TopHash } from '../../daemon/model/index.js'

/** 64 lower-case hex digits. */
export type PlanId = Brand<string, 'PlanId'>

export const TAILS = ['pad', 'drop', 'uneven'] as const
export type Tail = (typeof TAILS)[number]

const Closed = { additionalProperties: false } as const
const Globs = Type.Array(Type.String({ minLength: 1, maxLength: 4096 }), { maxItems: 1000 })
const Nullable = <T extends Parameters<typeof Type.Union>[0][number]>(type: T) => Type.Union([type, Type.Null()])

/** The request; `normalisePlan` fills in what is not said. */
export const PlanBody = Type.Object(
  {
    /** Any spelling of the command line. */
    package: Type.String({ minLength: 1 }),
    topHash: Type.Optional(Nullable(Type.String({ pattern: '^[0-9a-f]{6,64}$' }))),
    /** Globs on logical keys. */
    select: Type.Optional(Globs),
    exclude: Type.Optional(Globs),
    /** JMESPath over {key, size, hash, meta}. */
    where: Type.Optional(Nullable(Type.String({ minLength: 1, maxLength: 65_536 }))),
    group: Type.Optional(Type.Object({ by: Type.Union([Type.Literal('stem'), Type.Literal('entry')]) }, Closed)),
    order: Type.Optional(
      Type.Union([
        Type.Object({ algo: Type.Literal('qperm-1'), seed: Type.Optional(Type.String({ maxLength: 256 })) }, Closed),
        Type.Object({ algo: Type.Literal('sequential') }, Closed),
      ]),
    ),
    batch: Type.Optional(
      Type.Object(
        {
          /** Samples in a step, over all ranks. */
          global: Type.Optional(Type.Integer({ minimum: 1, maximum: 10_000_000 })),
          tail: Type.Optional(Type.Union(TAILS.map(tail => Type.Literal(tail)))),
        },
        Closed,
      ),
    ),
    onMissing: Type.Optional(Type.Union([Type.Literal('fail'), Type.Literal('mark')])),
    /** Suffix of the metadata member. */
    meta: Type.Optional(Nullable(Type.String({ pattern: '^[A-Za-z0-9_.-]{1,80}$' }))),
  },
  Closed,
)
export type PlanBody = Static<typeof PlanBody>

/** Complete, and with one spelling. */
export interface PlanDocument {
  readonly v: 1
  readonly topHash: TopHash
  readonly select: readonly string[]
  readonly exclude: readonly string[]
  readonly where: string | null
  readonly group: { readonly by: 'stem' | 'entry' }
  readonly order: { readonly algo: 'qperm-1'; readonly seed: string } | { readonly algo: 'sequential' }
  readonly batch: { readonly global: number; readonly tail: Tail }
  readonly onMissing: 'fail' | 'mark'
  readonly meta: string | null
}

const GLOBAL_BATCH = 256

/** `topHash`: of the package that the body names. That globs and `where` parse is `createSelector`'s to say. */
export function normalisePlan(body: PlanBody, topHash: TopHash): PlanDocument {
  const { order = { algo: 'qperm-1' } } = body
  return {
    v: 1,
    topHash,
    select: inOrder(body.select ?? ['**']),
    exclude: inOrder(body.exclude ?? []),
    where: body.where ?? null,
    group: { by: body.group?.by ?? 'stem' },
    order: order.algo === 'qperm-1' ? { algo: 'qperm-1', seed: order.seed ?? '0' } : { algo: 'sequential' },
    batch: { global: body.batch?.global ?? GLOBAL_BATCH, tail: body.batch?.tail ?? 'pad' },
    onMissing: body.onMissing ?? 'fail',
    meta: body.meta === undefined ? 'json' : body.meta,
  }
}

/** By UTF-16 code unit, as RFC 8785 orders names. */
function inOrder(globs: readonly string[]): string[] {
  return [...new Set(globs)].sort()
}

export function planIdOf(document: PlanDocument): PlanId {
  const text = canonicalize(document)
  if (text === undefined) throw new BobbinError('INTERNAL', 'a plan without a canonical form')
  return createHash('sha256').update(text).digest('hex') as PlanId
}

export function parsePlanId(text: string): PlanId {
  if (/^[0-9a-f]{64}$/.test(text)) return text as PlanId
  throw new BobbinError('INVALID_ARGUMENT', `not a plan id: ${JSON.stringify(text)}`)
}
