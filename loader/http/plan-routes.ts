/** Plans and cursors. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { BobbinError, formatBytes } from '../../daemon/model/index.js'
import { RAISE_LIMIT } from '../../daemon/store/cache-room.js'
import { findObject } from '../../daemon/store/index.js'
import { parseCursor } from '../plan/cursor.js'
import { PlanBody } from '../plan/plan-document.js'
import { shardNameTemplate, stepsPerShard } from '../plan/shard-name.js'
import type { OpenPlan } from '../supply/open-plan.js'
import type { Caller } from '../supply/plans.js'
import type { TableFacts } from '../supply/sample-table.js'
import type { Context } from './context.js'
import { CursorBody, CursorFacts, PlanFacts, PlanParams } from './schema.js'

/** Looking at more files takes too long for an answer. */
const COUNTED_MAX = 20_000

export function planRoutes(app: FastifyInstance, context: Context): void {
  const { plans } = context

  app.post<{ Body: PlanBody }>(
    '/v1/plans',
    { schema: { body: PlanBody, response: { 200: PlanFacts, 201: PlanFacts }, summary: 'Makes a plan, or finds it' } },
    async (request, reply) => {
      const admit = (facts: TableFacts) => refuseTooLarge(context, facts)
      const { id, isNew } = await plans.create(request.body, admit, callerOf(app, request, reply))
      return reply.code(isNew ? 201 : 200).send(await plans.use(id, plan => factsOf(context, plan)))
    },
  )

  app.get<{ Params: { id: string } }>(
    '/v1/plans/:id',
    { schema: { params: PlanParams, response: { 200: PlanFacts }, summary: 'A plan that this sidecar knows' } },
    async request => plans.use(request.params.id, plan => factsOf(context, plan)),
  )

  app.post<{ Body: CursorBody }>(
    '/v1/cursor/check',
    {
      schema: {
        body: CursorBody,
        response: { 200: CursorFacts },
        summary: 'Is this a cursor of that plan, and what is left',
      },
    },
    async request =>
      plans.use(request.body.plan, async plan => {
        const cursor = parseCursor(request.body.cursor, { topHash: plan.document.topHash, planId: plan.id })
        const { epoch, step } = plan.place(cursor)
        const { steps, positions } = plan.epoch(epoch)
        return {
          epoch,
          step,
          position: cursor.position,
          stepsLeft: Math.max(0, steps - step),
          samplesLeft: Math.max(0, positions - cursor.position),
        }
      }),
  )
}

function callerOf(app: FastifyInstance, { socket }: FastifyRequest, reply: FastifyReply): Caller {
  const gone = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort()
  })
  return { client: { listener: app, name: socket.remoteAddress ?? socket }, signal: gone.signal }
}

/** Better now than in the middle of an epoch. */
async function refuseTooLarge({ objects }: Context, { maxStepBytes }: TableFacts): Promise<void> {
  const limit = await objects.storeLimit()
  if (maxStepBytes <= limit) return
  throw new BobbinError(
    'STORE_FULL',
    `one global batch of this plan may need ${formatBytes(maxStepBytes)}, and the store holds ${formatBytes(limit)}: make batches smaller, or ${RAISE_LIMIT}`,
  )
}

async function factsOf({ options, door }: Context, plan: OpenPlan): Promise<PlanFacts> {
  const { samples, entries, bytes, maxStepBytes } = plan.facts
  const { stepsPerEpoch, address } = plan
  const perShard = stepsPerShard(stepsPerEpoch, plan.document.batch.global)
  return {
    planId: plan.id,
    plan: plan.document,
    package: `${address.registry}/${address.package}@${address.topHash}`,
    topHash: address.topHash,
    samples,
    entries,
    bytes,
    // What is here is nobody's business but the owner's.
    bytesCached: entries > COUNTED_MAX || !door.isOwners ? null : cachedBytes(options.daemon.cacheDir, plan),
    stepsPerEpoch,
    maxStepBytes,
    shardsPerEpoch: Math.ceil(stepsPerEpoch / perShard),
    stepsPerShard: perShard,
    shards: shardNameTemplate(plan.document.topHash, plan.id),
    objects: plan.folder,
  }
}

function cachedBytes(cacheDir: string, plan: OpenPlan): number {
  let sum = 0
  for (let sample = 0; sample < plan.facts.samples; sample++) {
    for (const entry of plan.entriesOf(sample)) if (findObject(cacheDir, entry) !== undefined) sum += entry.size
  }
  return sum
}
