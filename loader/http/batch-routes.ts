/** Steps of a plan, as tar or as paths; shards, which are steps by another name; samples by position. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { BobbinError, hasCode } from '../../daemon/model/index.js'
import { endLine, sampleText, stepLine } from '../format/paths.js'
import { parseCursor } from '../plan/cursor.js'
import { parseShardName, stepsPerShard } from '../plan/shard-name.js'
import { type LeasedStep, settled } from '../supply/ahead.js'
import type { Lease } from '../supply/daemon-leases.js'
import type { OpenPlan, RankOf, StepContent } from '../supply/open-plan.js'
import { negotiate, sendLayout } from './answer.js'
import { type Context, stream } from './context.js'
import { BatchesQuery, PlanParams, ReleaseBody, SamplesBody, SessionParams, ShardParams } from './schema.js'
import { layOut, notReady, refuseFailed, ShardObjects, type ShardSource } from './shards.js'

const PATHS_TYPE = 'application/vnd.bobbin.paths+ndjson'
const TAR_TYPE = 'application/x-tar'
/** That a client may ask for at once. */
const STEPS_MAX = 1000
/** Of a tar, whose layout is in memory: about 5 KB a sample. */
const SAMPLES_MAX = 65_536

export function batchRoutes(app: FastifyInstance, context: Context): void {
  const { plans, sessions } = context

  app.get<{ Params: { id: string }; Querystring: BatchesQuery }>(
    '/v1/plans/:id/batches',
    {
      schema: {
        params: PlanParams,
        querystring: BatchesQuery,
        summary: "A rank's part of some steps, as tar or as paths",
      },
    },
    async (request, reply) =>
      plans.use(request.params.id, async plan => {
        const { query } = request
        if (query.release !== undefined) sessions.release(query.release)
        const of = rankOf(query)
        const { epoch, step } = startOf(plan, query)
        const steps = stepsFrom(plan, step, countOf(query), whole(query.stride, 1, 'stride'), of)
        reply.raw.setHeader('x-bobbin-ready-steps', context.ahead.readySteps(plan, epoch, step, of))
        if (wantsPaths(request))
          await sendPaths(context, request, reply, { plan, of, epoch, steps, session: query.session })
        else {
          const whole = plan.document.onMissing === 'fail' ? context.ahead.beforeFailing(plan, epoch, steps, of) : steps
          const etag = `b${whole.length}x${query.stride ?? 1}-${step}`
          await sendTar(context, request, reply, { plan, of, epoch, steps: whole, etag })
        }
      }),
  )

  app.get<{ Params: { name: string } }>(
    '/wds/:name',
    { schema: { params: ShardParams, summary: 'A shard, for WebDataset; its name says everything' } },
    async (request, reply) => {
      const { topHash, plan: prefix, epoch, world, rank, shard } = parseShardName(request.params.name)
      return plans.useByPrefix(prefix, async plan => {
        if (!plan.document.topHash.startsWith(topHash))
          throw new BobbinError(
            'PLAN_NOT_FOUND',
            `the plan ${prefix}… has the top hash ${plan.document.topHash}, not ${topHash}…`,
          )
        const perShard = stepsPerShard(plan.stepsPerEpoch, plan.document.batch.global)
        const of = { rank, world }
        const steps = stepsFrom(plan, shard * perShard, perShard, 1, of)
        await sendTar(context, request, reply, { plan, of, epoch, steps, etag: String(shard) })
      })
    },
  )

  app.post<{ Params: { id: string }; Body: SamplesBody }>(
    '/v1/plans/:id/samples',
    { schema: { params: PlanParams, body: SamplesBody, summary: 'Samples by their positions in an epoch' } },
    async (request, reply) =>
      plans.use(request.params.id, async plan => {
        const { epoch = 0, positions, session, release } = request.body
        if (release !== undefined) sessions.release(release)
        const of = { rank: 0, world: 1 }
        if (wantsPaths(request)) await sendPaths(context, request, reply, { plan, of, epoch, positions, session })
        else await sendTar(context, request, reply, { plan, of, epoch, steps: [], positions, etag: null })
      }),
  )

  app.post<{ Body: ReleaseBody }>(
    '/v1/release',
    { schema: { body: ReleaseBody, summary: 'Lets a lease of paths go, and all before it' } },
    async (request, reply) => {
      sessions.release(request.body.lease)
      return reply.code(204).send()
    },
  )

  app.delete<{ Params: SessionParams }>(
    '/v1/sessions/:session',
    { schema: { params: SessionParams, summary: 'Ends a session: all its leases of paths go' } },
    async (request, reply) => {
      sessions.end(request.params.session)
      return reply.code(204).send()
    },
  )
}

interface TarWish {
  readonly plan: OpenPlan
  readonly of: RankOf
  readonly epoch: number
  readonly steps: readonly number[]
  /** Instead of steps. */
  readonly positions?: readonly number[]
  /** What tells this answer from the others of its plan, epoch and rank; null: it has no ETag. */
  readonly etag: string | null
}

async function sendTar(context: Context, request: FastifyRequest, reply: FastifyReply, wish: TarWish): Promise<void> {
  const { plan, of, epoch, steps } = wish
  const { positions } = wish
  const samples = positions?.length ?? steps.reduce((sum, step) => sum + plan.samplesIn(epoch, step, of), 0)
  if (samples > SAMPLES_MAX)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `${samples} samples in one tar, at most ${SAMPLES_MAX}: ask for fewer steps, or for paths`,
    )
  await context.streams.during({ samples }, async () => {
    const contents =
      positions === undefined
        ? steps.map(step => context.ahead.contentOf(plan, epoch, step, of))
        : [plan.at(epoch, positions)]
    const source: ShardSource = { plan, of, epoch, steps, contents }
    await stream(context, request, reply, async signal => {
      const shard = layOut(source)
      const isStable = wish.etag !== null && plan.document.onMissing === 'fail'
      const span = negotiate(request.raw, reply.raw, shard.layout.bytes, {
        contentType: TAR_TYPE,
        etag: isStable ? `"${plan.id.slice(0, 16)}-e${epoch}-w${of.world}r${of.rank}-${wish.etag}"` : null,
      })
      if (span === undefined) return
      if (request.method === 'HEAD') {
        reply.raw.writeHead(span.status).end()
        return
      }
      const { ahead, options, packing } = context
      const objects = new ShardObjects(source, shard, {
        ahead,
        timeoutMs: options.stepTimeoutMs,
        signal,
        onWait: ms => context.metrics.waited(ms),
      })
      let outcome: 'delivered' | 'aborted' = 'aborted'
      try {
        await sendLayout({ response: reply.raw, layout: shard.layout, span, objects, packing, signal })
        outcome = 'delivered'
      } finally {
        objects.close()
        // Of a range, too: then more is written down than was sent, and nothing that was is left out.
        if (reply.raw.headersSent) deliver(context, { plan, of, epoch, contents, as: 'tar', outcome })
      }
    })
  })
}

interface PathsWish {
  readonly plan: OpenPlan
  readonly of: RankOf
  readonly epoch: number
  readonly steps?: readonly number[]
  /** Instead of steps. */
  readonly positions?: readonly number[]
  readonly session: string | undefined
}

async function sendPaths(
  context: Context,
  request: FastifyRequest,
  reply: FastifyReply,
  wish: PathsWish,
): Promise<void> {
  const { plan, of, epoch, steps = [], positions } = wish
  // A step at a time is in memory.
  const samples = positions?.length ?? plan.samplesIn(epoch, steps[0]!, of)
  await context.streams.during({ samples }, async () => {
    // Before the answer begins: a damaged index is made again then.
    const first =
      positions === undefined ? context.ahead.contentOf(plan, epoch, steps[0]!, of) : plan.at(epoch, positions)
    await sendLines(context, request, reply, wish, first)
  })
}

async function sendLines(
  context: Context,
  request: FastifyRequest,
  reply: FastifyReply,
  { plan, of, epoch, steps = [], positions, session: asked }: PathsWish,
  first: StepContent,
): Promise<void> {
  const { ahead, sessions, options } = context
  const session = sessions.open(asked)
  await stream(context, request, reply, async signal => {
    const wishes = positions === undefined ? steps : [null]
    let last: number | undefined
    for (const [i, step] of wishes.entries()) {
      let leased: LeasedStep | undefined
      let line: string
      try {
        const wished = i === 0 ? first : ahead.contentOf(plan, epoch, step!, of)
        leased = step === null ? ahead.lease(plan, wished) : ahead.take(plan, wished, of)
        const started = performance.now()
        const lease = await settled(leased, {
          timeoutMs: i === 0 ? options.stepTimeoutMs : undefined,
          signal,
          late: () => notReady(options.stepTimeoutMs),
        })
        if (i === 0) context.metrics.waited(performance.now() - started)
        const samples = samplesOf(plan, leased.content, lease)
        const cursor = step === null ? null : plan.cursorAt(epoch, step + 1)
        line = stepLine({ epoch, step, cursor, lease: sessions.hold(session, leased), samples })
      } catch (error) {
        if (leased !== undefined && step !== null && hasCode(error, 'NOT_READY', 'INTERRUPTED'))
          ahead.giveBack(plan, of, leased)
        else leased?.release()
        // The client goes on from here, and is told then what is the matter, if it still is.
        if (i > 0 && !hasCode(error, 'INTERRUPTED')) break
        throw error
      }
      if (!reply.raw.headersSent) reply.raw.writeHead(200, { 'content-type': PATHS_TYPE, 'cache-control': 'no-store' })
      let outcome: 'delivered' | 'aborted' = 'aborted'
      try {
        await writeLine(reply.raw, line)
        outcome = 'delivered'
      } finally {
        deliver(context, { plan, of, epoch, contents: [leased.content], as: 'paths', outcome })
      }
      if (step !== null) ahead.extend(plan, epoch, step, of)
      last = step ?? undefined
    }
    await new Promise<void>(resolve =>
      reply.raw.end(endLine(last === undefined ? null : plan.cursorAt(epoch, last + 1)), () => resolve()),
    )
  })
}

/** Throws what the first object that cannot be had has failed with, unless the plan marks such. */
function samplesOf(plan: OpenPlan, content: StepContent, lease: Lease): string[] {
  if (plan.document.onMissing === 'fail') refuseFailed(content, lease)
  const { failed } = lease
  return content.samples.map(({ pos, isPad, facts }) => {
    const isWhole = failed.size === 0 || !facts.entries.some(({ ino }) => failed.has(ino))
    return sampleText(pos, isPad, isWhole ? facts.body : plan.bodyWithErrors(facts, failed))
  })
}

function writeLine(response: FastifyReply['raw'], line: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const onClose = () => reject(new BobbinError('INTERRUPTED', 'the client has gone'))
    response.once('close', onClose)
    response.write(line, error => {
      response.off('close', onClose)
      if (error) reject(new BobbinError('INTERRUPTED', 'the client has gone', { cause: error }))
      else resolve()
    })
  })
}

function deliver(
  { deliveries, metrics }: Context,
  delivery: {
    readonly plan: OpenPlan
    readonly of: RankOf
    readonly epoch: number
    readonly contents: readonly StepContent[]
    readonly as: 'tar' | 'paths'
    readonly outcome: 'delivered' | 'aborted'
  },
): void {
  const { plan, of, epoch, contents, as, outcome } = delivery
  const samples = contents.reduce((sum, content) => sum + content.samples.length, 0)
  const bytes = contents.reduce((sum, content) => sum + content.bytes, 0)
  const steps = contents.flatMap(({ step }) => (step === null ? [] : [step]))
  deliveries.add({
    plan: plan.id,
    epoch,
    ...of,
    steps: steps.length === 0 ? null : steps,
    ...(steps.length === 0 && { positions: contents.flatMap(content => content.samples.map(({ pos }) => pos)) }),
    samples,
    bytes,
    as,
    outcome,
  })
  metrics.delivered(as, outcome, samples, bytes)
}

function wantsPaths(request: FastifyRequest): boolean {
  return (request.headers.accept ?? '').includes(PATHS_TYPE)
}

function rankOf(query: BatchesQuery): RankOf {
  return { rank: whole(query.rank, 0, 'rank'), world: whole(query.world, 1, 'world') }
}

/** The schema has seen to it that these are digits. */
function whole(text: string | undefined, missing: number, name: string): number {
  const value = text === undefined ? missing : Number(text)
  if (value < 1 && (name === 'n' || name === 'stride' || name === 'world'))
    throw new BobbinError('INVALID_ARGUMENT', `${name} is at least 1`)
  return value
}

function countOf({ n }: BatchesQuery): number {
  const count = whole(n, 1, 'n')
  if (count > STEPS_MAX)
    throw new BobbinError('INVALID_ARGUMENT', `${count} steps in one answer, at most ${STEPS_MAX}: ask for fewer`)
  return count
}

function startOf(plan: OpenPlan, query: BatchesQuery): { epoch: number; step: number } {
  if (query.cursor === undefined) return { epoch: whole(query.epoch, 0, 'epoch'), step: whole(query.step, 0, 'step') }
  if (query.epoch !== undefined || query.step !== undefined)
    throw new BobbinError('INVALID_ARGUMENT', 'give a cursor, or epoch and step, not both')
  return plan.place(parseCursor(query.cursor, { topHash: plan.document.topHash, planId: plan.id }))
}

/** Throws INVALID_ARGUMENT when there is none. */
function stepsFrom(plan: OpenPlan, first: number, count: number, stride: number, of: RankOf): number[] {
  plan.epoch(0).check(of.rank, of.world)
  const total = plan.stepsPerEpoch
  if (first >= total)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `step ${first}: an epoch of this plan has ${total} steps, from 0 to ${total - 1}`,
    )
  const steps: number[] = []
  for (let step = first; step < total && steps.length < count; step += stride) steps.push(step)
  return steps
}
