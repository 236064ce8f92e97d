import t from 'tap'
import { FetchLine, type Priority } from '../../../../daemon/fetch/fetch-line.js'

/** Work that ends when it is told to. */
function held(line: FetchLine, bytes: number, priority: Priority, started: string[], name: string) {
  let end = () => {}
  const ended = new Promise<void>(resolve => {
    end = resolve
  })
  const place = line.run(bytes, priority, () => {
    started.push(name)
    return ended
  })
  return { ...place, end }
}

const turn = () => new Promise(resolve => setImmediate(resolve))

t.test('FetchLine.run takes what is demanded before what is fetched ahead', async t => {
  const line = new FetchLine({ objectsMin: 1, objectsMax: 1, bytesMax: 100 })
  const started: string[] = []
  const first = held(line, 1, 'ahead', started, 'first')
  const ahead = held(line, 1, 'ahead', started, 'ahead')
  const demand = held(line, 1, 'demand', started, 'demand')
  for (const work of [first, demand, ahead]) {
    work.end()
    await work.result
  }
  t.same(started, ['first', 'demand', 'ahead'])
  t.match(line, { active: 0, waiting: 0 })
})

t.test('FetchLine: promote moves what waits to the front class, and does nothing later', async t => {
  const line = new FetchLine({ objectsMin: 1, objectsMax: 1, bytesMax: 100 })
  const started: string[] = []
  const first = held(line, 1, 'ahead', started, 'first')
  const other = held(line, 1, 'ahead', started, 'other')
  const wanted = held(line, 1, 'ahead', started, 'wanted')
  wanted.promote()
  wanted.promote()
  t.equal(line.waiting, 2)
  for (const work of [first, wanted, other]) {
    work.end()
    await work.result
    work.promote()
  }
  t.same(started, ['first', 'wanted', 'other'])
  t.equal(line.waiting, 0)
})

t.test('FetchLine.run starts few large ones and many small ones', async t => {
  const line = new FetchLine({ objectsMin: 2, objectsMax: 5, bytesMax: 100 })
  const started: string[] = []
  const large = [1, 2, 3].map(i => held(line, 1000, 'demand', started, `large ${i}`))
  await turn()
  t.same(started, ['large 1', 'large 2'])
  for (const work of large) {
    work.end()
    await work.result
  }
  const small = Array.from({ length: 7 }, (_, i) => held(line, 10, 'demand', started, `small ${i}`))
  await turn()
  t.match(line, { active: 5, waiting: 2 })
  for (const work of small) work.end()
  await Promise.all(small.map(work => work.result))
  t.match(line, { active: 0, waiting: 0 })
})

t.test('FetchLine.run gives on what the work throws, and goes on', async t => {
  const line = new FetchLine({ objectsMin: 1, objectsMax: 1, bytesMax: 100 })
  const failing = line.run(1, 'demand', () => Promise.reject(new Error('in vain')))
  const next = line.run(1, 'demand', async () => 'done')
  await t.rejects(failing.result, { message: 'in vain' })
  t.equal(await next.result, 'done')
})
