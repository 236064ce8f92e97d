/** The routes of batches on plans that no test can have for real. */
import { request } from 'node:http'
import { join } from 'node:path'
import Fastify from 'fastify'
import t from 'tap'
import { Packing } from '../../loader/batch/packing.js'
import { batchRoutes } from '../../loader/http/batch-routes.js'
import { type Context, Streams } from '../../loader/http/context.js'
import type { OpenPlan } from '../../loader/http/open-plan.js'
import { stepsPerShard } from '../../loader/plan/shard-name.js'
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
    cursorAt: (epoch: number, step: number) => `${epoch}:${step}`,
  } as unknown as OpenPlan
}

t.test('the shards of an epoch of more than a million steps have all of them', async t => {
  const plan = emptyPlan(1_562_500, 32)
  const packing = new Packing()
  const app = Fastify()
  t.teardown(async () => {
    await app.close()
    await packing.close()
  })
  batchRoutes(app, {
    plans: { useByPrefix: (_: string, run: (plan: OpenPlan) => unknown) => run(plan) },
    streams: new Streams(9),
    metrics: { answered() {}, delivered() {}, waited() {} },
    deliveries: { add() {} },
    options: { stepTimeoutMs: 1000 },
    packing,
  } as unknown as Context)
  const socketPath = join(testFolder(t), 's')
  await app.listen({ path: socketPath })
  const ask = (shard: number) =>
    new Promise<Buffer>((resolve, reject) => {
      const name = `q${TOP_HASH.slice(0, 16)}-p${PLAN_ID.slice(0, 16)}-e0-w1r0-${String(shard).padStart(6, '0')}.tar`
      const call = request({ socketPath, path: `/wds/${name}`, agent: false }, response => {
        const chunks: Buffer[] = []
        response.on('data', chunk => chunks.push(chunk))
        response.once('end', () => resolve(Buffer.concat(chunks))).once('error', reject)
      })
      call.once('error', reject).end()
    })
  const perShard = stepsPerShard(plan.stepsPerEpoch, 32)
  const last = Math.ceil(plan.stepsPerEpoch / perShard) - 1
  for (const shard of [0, 1, last]) {
    const { steps } = JSON.parse(untar(await ask(shard))[0]!.content.toString()) as { steps: number[] }
    t.equal(steps[0], shard * perShard)
    t.equal(steps.at(-1)! + 1, Math.min((shard + 1) * perShard, plan.stepsPerEpoch))
  }
})
