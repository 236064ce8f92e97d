/** Fetching ahead, over leases that the test grants: what is asked for when, and what is let go. */
import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { BobbinError, silentLog } from '../../daemon/model/index.js'
import { Ahead } from '../../loader/http/ahead.js'
import type { Lease } from '../../loader/http/objects.js'
import type { OpenPlan, StepContent } from '../../loader/http/open-plan.js'
import type { Resident } from '../../loader/http/resident.js'

const STEP_BYTES = 100
const OF = { rank: 0, world: 1 }

/** Steps of one object of 100 bytes; leases are named by epoch and step. */
function startAhead({
  steps,
  bytesMax = 1e9,
  refuse = () => undefined,
}: {
  readonly steps: number
  readonly bytesMax?: number
  readonly refuse?: () => BobbinError | undefined
}) {
  const held = new Set<Lease>()
  const asked: string[] = []
  const objects = {
    async lease(_: OpenPlan, { epoch, step }: StepContent): Promise<Lease> {
      const name = `${epoch} ${step}`
      asked.push(name)
      await turn()
      const error = refuse()
      if (error !== undefined) throw error
      const lease: Lease = { id: name, failed: new Map(), release: () => void held.delete(lease) }
      held.add(lease)
      return lease
    },
    dropUnused() {},
  } as unknown as Resident
  const plan = {
    id: 'p',
    stepsPerEpoch: steps,
    step: (epoch: number, step: number) => ({ epoch, step, samples: [], inos: [1], bytes: STEP_BYTES }),
    distances: () => [],
  } as unknown as OpenPlan
  const ahead = new Ahead(objects, { bytesMax, log: silentLog })
  return {
    ahead,
    plan,
    asked,
    /** Those of which an object is leased. */
    held: () => new Set([...held].map(({ id }) => id)),
    /** As an answer does, without letting go. */
    async read(epoch: number, step: number) {
      const leased = ahead.take(plan, epoch, step, OF)
      await leased.lease
      ahead.extend(plan, epoch, step, OF)
      return leased
    },
  }
}

/** Long enough for whatever is done a step a turn. */
async function quiet(): Promise<void> {
  for (let i = 0; i < 300; i++) await turn()
}

t.test('a step whose lease was refused ahead is leased anew when it is asked for', async t => {
  let isAway = true
  const refuse = () => (isAway ? new BobbinError('DAEMON_UNAVAILABLE', 'away') : undefined)
  const { ahead, plan, held, read } = startAhead({ steps: 100, refuse })
  t.teardown(() => ahead.close())
  ahead.extend(plan, 0, 0, OF)
  await t.rejects(read(0, 1), { code: 'DAEMON_UNAVAILABLE' })
  await quiet()
  t.equal(ahead.bytes, 0, 'what was refused is not counted')
  isAway = false
  for (const step of [1, 2, 3]) {
    const leased = await read(0, step)
    t.ok(held().has(`0 ${step}`))
    leased.release()
  }
})
