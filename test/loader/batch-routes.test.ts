/** The routes of batches on plans that no test can have for real. */
import { request } from 'node:http'
import { join } from 'node:path'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { silentLog } from '../../daemon/model/index.js'
import { Packing } from '../../loader/batch/packing.js'
import { batchRoutes } from '../../loader/http/batch-routes.js'
import { type Context, Streams } from '../../loader/http/context.js'
import { stepsPerShard } from '../../loader/plan/shard-name.js'
import type { OpenPlan, StepContent } from '../../loader/supply/open-plan.js'
import { testFolder } from '../support/daemon.js'
import { untar } from '../support/loader.js'

const PLAN_ID = 'b'.repeat(64)
const TOP_HASH = 'a'.repeat(64)

/** Of steps without samples. */
function emptyPlan(stepsPerEpoch: number, global: number): OpenPlan {
  return {
    id: PLAN_ID,
    document: { topHash: TOP_HASH, onMissing: 'fail', batch: { global } },
    stepsPerEpoch,
    epoch: () => ({ check() {} }),
    step: (epoch: number, step: number) => ({ epoch, step, samples: [], inos: [], bytes: 0 }),
    samplesIn: () => 0,
    cursorAt: (epoch: number, step: number) => `${epoch}:${step}`,
  } as unknown as OpenPlan
}

/** The routes on a socket of their own. */
async function serve(t: Test, context: object): Promise<(path: string, accept?: string) => Promise<Buffer>> {
  const packing = new Packing()
  const app = Fastify()
  t.teardown(async () => {
    await app.close()
    await packing.close()
  })
  batchRoutes(app, {
    streams: new Streams(9),
    metrics: { answered() {}, delivered() {}, waited() {} },
    deliveries: { add() {} },
    options: { stepTimeoutMs: 1000 },
    packing,
    log: silentLog,
    ...context,
  } as unknown as Context)
  const socketPath = join(testFolder(t), 's')
  await app.listen({ path: socketPath })
  return (path, accept = '*/*') =>
    new Promise<Buffer>((resolve, reject) => {
      const call = request({ socketPath, path, agent: false, headers: { accept } }, response => {
        const chunks: Buffer[] = []
        response.on('data', chunk => chunks.push(chunk))
        response.once('end', () => resolve(Buffer.concat(chunks))).once('error', reject)
      })
      call.once('error', reject).end()
    })
}

t.test('the shards of an epoch of more than a million steps have all of them', async t => {
  const plan = emptyPlan(1_562_500, 32)
  const ask = await serve(t, {
    plans: { useByPrefix: (_: string, run: (plan: OpenPlan) => unknown) => run(plan) },
    ahead: { contentOf: (of: OpenPlan, epoch: number, step: number) => of.step(epoch, step, { rank: 0, world: 1 }) },
  })
  const perShard = stepsPerShard(plan.stepsPerEpoch, 32)
  const last = Math.ceil(plan.stepsPerEpoch / perShard) - 1
  for (const shard of [0, 1, last]) {
    const name = `q${TOP_HASH.slice(0, 16)}-p${PLAN_ID.slice(0, 16)}-e0-w1r0-${String(shard).padStart(6, '0')}.tar`
    const { steps } = JSON.parse(untar(await ask(`/wds/${name}`))[0]!.content.toString()) as { steps: number[] }
    t.equal(steps[0], shard * perShard)
    t.equal(steps.at(-1)! + 1, Math.min((shard + 1) * perShard, plan.stepsPerEpoch))
  }
})

t.test('fetching ahead waits until the first step is with the client', async t => {
  const plan = emptyPlan(10, 4)
  const extended: number[] = []
  let lines = 0
  const ask = await serve(t, {
    plans: { use: (_: string, run: (plan: OpenPlan) => unknown) => run(plan) },
    sessions: { open: () => 'session', hold: () => `lease-${lines++}` },
    deliveries: {
      add() {
        t.equal(extended.length, lines - 1, 'a step is written before what is behind it is fetched')
      },
    },
    ahead: {
      readySteps: () => 0,
      contentOf: (of: OpenPlan, epoch: number, step: number) => of.step(epoch, step, { rank: 0, world: 1 }),
      take: (_: OpenPlan, content: StepContent) => ({
        content,
        lease: Promise.resolve({ id: '', failed: new Map(), release() {} }),
      }),
      extend: (_: OpenPlan, __: number, step: number) => void extended.push(step),
    },
  })
  await ask(`/v1/plans/${PLAN_ID}/batches?n=3`, 'application/vnd.bobbin.paths+ndjson')
  t.equal(lines, 3)
  t.same(extended, [0, 1, 2])
})
