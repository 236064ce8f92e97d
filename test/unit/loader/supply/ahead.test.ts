/** Fetching ahead, over leases that the test grants: what is asked for when, and what is let go. */
import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { BobbinError, silentLog } from '../../../../daemon/model/index.js'
import { Ahead } from '../../../../loader/supply/ahead.js'
import type { Lease } from '../../../../loader/supply/daemon-leases.js'
import type { OpenPlan, StepContent } from '../../../../loader/supply/open-plan.js'
import type { Resident } from '../../../../loader/supply/resident.js'

const STEP_BYTES = 100
const OF = { rank: 0, world: 1 }

/** Steps of one object of 100 bytes; leases are named by epoch and step. */
function startAhead({
  steps,
  bytesMax = 1e9,
  refuse = () => undefined,
  onStep = () => {},
}: {
  readonly steps: number
  readonly bytesMax?: number
  readonly refuse?: () => BobbinError | undefined
  /** Told of each step that is worked out. */
  readonly onStep?: (step: number) => void
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
    isOpen: true,
    stepsPerEpoch: steps,
    step: (epoch: number, step: number) => {
      onStep(step)
      return { epoch, step, samples: [], inos: [1], bytes: STEP_BYTES }
    },
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
      const leased = ahead.take(plan, ahead.contentOf(plan, epoch, step, OF), OF)
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
  const { ahead, plan, asked, held, read } = startAhead({ steps: 100, refuse })
  t.teardown(() => ahead.close())
  ahead.extend(plan, 0, 0, OF)
  await t.rejects(read(0, 1), { code: 'DAEMON_UNAVAILABLE' })
  await quiet()
  t.equal(ahead.bytes, 0, 'what was refused is not counted')
  t.ok(asked.length <= 66, 'nor asked for again at once')
  isAway = false
  for (const step of [1, 2, 3]) {
    const leased = await read(0, step)
    t.ok(held().has(`0 ${step}`))
    leased.release()
  }
})

t.test('passes that stop early do not end fetching ahead', async t => {
  const { ahead, held, read } = startAhead({ steps: 200, bytesMax: 70 * STEP_BYTES })
  t.teardown(() => ahead.close())
  for (let epoch = 0; epoch < 30; epoch++) {
    for (const step of [0, 1, 2]) (await read(epoch, step)).release()
    await quiet()
  }
  t.ok(held().has('29 3'))
  t.ok(held().has('29 20'))
  t.ok(ahead.bytes <= 70 * STEP_BYTES)
  // Elsewhere in the same epoch it may be another worker for a while.
  for (let step = 100; step < 120; step++) (await read(29, step)).release()
  await quiet()
  t.ok(held().has('29 130'))
})

t.test('steps that nobody came for are bounded although there is room', async t => {
  const { ahead, held, read } = startAhead({ steps: 200 })
  t.teardown(() => ahead.close())
  for (let epoch = 0; epoch < 100; epoch++) {
    ;(await read(epoch, 0)).release()
    await quiet()
  }
  t.ok(held().has('99 64'))
  t.ok(ahead.bytes <= 1024 * STEP_BYTES)
})

t.test('an epoch of one step is looked ahead one epoch, not 64', async t => {
  const { ahead, asked, read } = startAhead({ steps: 1 })
  t.teardown(() => ahead.close())
  for (const epoch of [0, 1, 2]) {
    ;(await read(epoch, 0)).release()
    await quiet()
    t.equal(ahead.bytes, STEP_BYTES)
  }
  t.same(asked, ['0 0', '1 0', '2 0', '3 0'])
})

t.test('eight workers with 64 steps each on one stream get each step fetched once', async t => {
  const { ahead, asked, read } = startAhead({ steps: 2000 })
  t.teardown(() => ahead.close())
  const workers = 8
  for (let answer = 0; answer < 3; answer++) {
    for (let worker = 0; worker < workers; worker++) {
      for (let i = 0; i < 64; i++) {
        await quiet()
        ;(await read(0, (answer * 64 + i) * workers + worker)).release()
      }
    }
  }
  t.equal(new Set(asked).size, asked.length)
})

t.test('steps are worked out ahead one a turn, and never by two at once', async t => {
  let worked = 0
  const { ahead, plan, held } = startAhead({ steps: 100, onStep: () => void worked++ })
  t.teardown(() => ahead.close())
  for (const step of [0, 1, 2]) ahead.extend(plan, 0, step, OF)
  t.equal(worked, 0, 'not by who asks')
  for (let before = 0; worked < 64; before = worked) {
    await turn()
    t.ok(worked - before <= 1)
  }
  await quiet()
  t.equal(worked, 64)
  t.ok(held().has('0 66'), 'behind the step that was asked for last')
})

t.test('nothing is worked out of a plan that was closed, and one that fails is told to who asks for it', async t => {
  let isBroken = true
  const onStep = () => {
    if (isBroken) throw new BobbinError('INDEX_DAMAGED', 'a block of it')
  }
  const { ahead, plan, asked, held, read } = startAhead({ steps: 100, onStep })
  t.teardown(() => ahead.close())
  ahead.extend(plan, 0, 0, OF)
  await quiet()
  t.same(asked, [])
  isBroken = false
  ;(await read(0, 1)).release()
  await quiet()
  t.ok(held().has('0 65'))
  Object.assign(plan, { isOpen: false })
  ahead.extend(plan, 0, 20, OF)
  await quiet()
  t.notOk(held().has('0 66'))
})
