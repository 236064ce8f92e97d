/** Sessions of the loader's clients, which hold leases of paths. */
import t from 'tap'
import { Sessions } from '../../../../loader/http/sessions.js'
import type { LeasedStep } from '../../../../loader/supply/ahead.js'

t.test('whoever opens many sessions ends none of another client (S61)', async t => {
  const sessions = new Sessions(60_000)
  t.teardown(() => sessions.close())
  let released = 0
  const leased = { release: () => released++ } as unknown as LeasedStep
  sessions.hold('somebody_else', leased)
  for (let i = 1; i < 10_000; i++) sessions.open(`attacker_${i}`)
  t.throws(() => sessions.open('attacker_10000'), { code: 'BUSY' })
  t.equal(released, 0)
  t.ok(sessions.hold('somebody_else', leased), 'who is known goes on')
})
