/** What the loader writes down of its answers: whole in a run's file, and whatever is missing is counted. */
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pino } from 'pino'
import t from 'tap'
import { Deliveries, type EntriesDelivery } from '../../../../loader/supply/deliveries.js'
import { smallDisk } from '../../../support/small-disk.js'

const silent = pino({ level: 'silent' })
const delivery = (key: string): EntriesDelivery => {
  return {
    registry: 'file:///r',
    package: 'a/b',
    topHash: 'a'.repeat(64),
    keys: [key],
    as: 'entry',
    outcome: 'delivered',
  }
}
const linesIn = (path: string) =>
  readFileSync(path, 'utf8')
    .split('\n')
    .filter(line => line !== '')

t.test("the cache's own file keeps one before it, a run's has no bound", async t => {
  const folder = t.testdir()
  for (const [name, bytesMax] of [
    ['own', 100],
    ['run', Number.POSITIVE_INFINITY],
  ] as const) {
    const path = join(folder, name)
    const deliveries = new Deliveries({ path, bytesMax }, silent)
    for (const key of ['1', '2', '3']) {
      deliveries.add(delivery(key))
      t.equal(await deliveries.flush(), true)
    }
    const lines = linesIn(path)
    t.equal(lines.length, name === 'own' ? 1 : 3)
    t.equal(existsSync(`${path}.1`), name === 'own')
  }
})

t.test('what a full disk does not take is counted, and told as soon as there is room', async t => {
  const disk = smallDisk(t, 1)
  if (disk === undefined) return
  const path = join(disk, 'deliveries')
  const deliveries = new Deliveries({ path, bytesMax: Number.POSITIVE_INFINITY }, silent)
  deliveries.add(delivery('first'))
  t.equal(await deliveries.flush(), true)
  writeFileSync(join(disk, 'filler'), Buffer.alloc(2 ** 20 - 8192))
  for (let i = 0; i < 100; i++) deliveries.add(delivery(String(i)))
  t.equal(await deliveries.flush(), false, 'and who ends the loader is told')
  truncateSync(join(disk, 'filler'), 0)
  deliveries.add(delivery('last'))
  t.equal(await deliveries.flush(), true)
  const lines = linesIn(path)
  t.match(JSON.parse(lines.at(-1)!), { lost: 100 })
  t.match(JSON.parse(lines.at(-2)!), { keys: ['last'] })
})
