/** Plans as an attacker writes them: what they cost is bounded, and others are served meanwhile. */
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { type ClientRequest, request } from 'node:http'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Bobbin } from '../support/cli.js'
import { testFolder, until } from '../support/daemon.js'
import { type RunningLoader, startLoader } from '../support/loader.js'
import { noise } from '../support/objects.js'
import { type WrittenPackage, writeRegistry } from '../support/registry.js'

t.setTimeout(600_000)

/** A list of a thousand numbers in an entry's metadata: three loops over it take minutes, and no memory. */
const LIST = Array.from({ length: 1000 }, (_, i) => i)
const SLOW = 'length(map(&length(map(&length(map(&type(@), $.meta.list)), $.meta.list)), $.meta.list)) == `1`'

function writeListed(t: Test): Promise<WrittenPackage> {
  const file = (i: number) => ({ bytes: noise(100, i), meta: { list: LIST } })
  return writeRegistry(join(testFolder(t), 'registry'), 'test/listed', { a: file(1), b: file(2) })
}

/** Processes that the loader has started, less the daemon, which goes on by itself. */
function builders(loader: RunningLoader): string[] {
  const pid = String(loader.process.pid)
  const found = execFileSync('ps', ['-eo', 'pid=,ppid=,args='], { encoding: 'utf8' }).split('\n')
  return found.filter(line => line.trim().split(/\s+/)[1] === pid && line.includes('confined-child'))
}

/** Posts a plan and does not wait. */
function post(loader: RunningLoader, body: object): ClientRequest {
  const call = request({
    socketPath: loader.socket,
    path: '/v1/plans',
    method: 'POST',
    agent: false,
    headers: { 'content-type': 'application/json' },
  })
  call.on('error', () => {})
  call.end(JSON.stringify(body))
  return call
}

t.test('expressions that make text without end are refused, and end nobody (S81)', async t => {
  const written = await writeListed(t)
  const loader = await startLoader(t)
  const { pid } = loader.process
  const doubled = (part: string) => `key | ${Array(40).fill(part).join(' | ')}`
  for (const [where, words] of [
    ["pad_left('x', `200000000`)", /must not call pad_left\(\)/],
    ['[pad_right(key, `200000000`), meta]', /must not call pad_right\(\)/],
    ["meta.list[?replace(key, 'a', 'aa', `100000000`)]", /must not call replace\(\)/],
    ["map(&pad_left('x', @), meta.list)", /must not call pad_left\(\)/],
    [doubled('to_string([@, @])'), /more than 512 MiB|does not fit|selects no entry/],
    [doubled("join('', [@, @])"), /more than 512 MiB|does not fit/],
    [`${'!'.repeat(5000)}key`, /nested expressions|call stack/],
    [`${'a.'.repeat(5000)}a`, /nested expressions|call stack/],
  ] as const) {
    const answer = await loader.ask('/v1/plans', { body: { package: written.reference, where } })
    t.equal(answer.status, 400, where.slice(0, 60))
    t.match(answer.json(), { code: 'INVALID_ARGUMENT', detail: words })
  }
  const many = Array.from({ length: 500 }, (_, i) => `key == 'x${i}'`).join(' || ')
  const plan = await loader.plan({ package: written.reference, where: `${many} || key == 'a'` })
  t.equal(plan.samples, 1, 'a long one of people is not')
  t.equal(loader.process.pid, pid)
  t.equal(loader.process.exitCode, null)
  t.same(builders(loader), [])
  t.same(
    readdirSync(join(loader.cacheDir, 'loader', 'v1')).filter(name => !name.includes(plan.planId)),
    ['deliveries.ndjson'].filter(name => readdirSync(join(loader.cacheDir, 'loader', 'v1')).includes(name)),
    'nothing is left of them',
  )
})

t.test('a slow plan keeps nobody waiting, and is given up when its client goes (S82)', async t => {
  const written = await writeListed(t)
  const loader = await startLoader(t)
  const slow = (i: number) =>
    post(loader, { package: written.reference, where: SLOW, order: { algo: 'qperm-1', seed: `${i}` } })
  const first = slow(0)
  await until('it is being made', () => builders(loader).length === 1)
  const quick = await loader.plan({ package: written.reference, select: ['a'] })
  t.equal(quick.samples, 1)
  t.equal(builders(loader).length, 1, 'while the slow one is still being made')
  first.destroy()
  await until('it is ended', () => builders(loader).length === 0)

  // Those who come by one socket have two builders, and the others wait, so many and no more.
  const calls = Array.from({ length: 80 }, (_, i) => slow(i))
  const busy = calls.map(async call => {
    const [response] = await once(call, 'response')
    response.resume()
    return response as { statusCode: number; headers: Record<string, string> }
  })
  const { statusCode, headers } = await Promise.race(busy)
  t.equal(statusCode, 429)
  t.ok(Number(headers['retry-after']) >= 1)
  // The refusal may come before the processes of those that were let in.
  await until('two are being made', () => builders(loader).length === 2)
  t.equal((await loader.ask('/readyz')).status, 200, 'everything else is answered')
  t.equal((await loader.ask(`/v1/plans/${quick.planId}/batches`)).status, 200)
  t.equal(builders(loader).length, 2, 'no more than two, also later')
  for (const one of busy) one.catch(() => {})
  for (const call of calls) call.destroy()
  await until('all are ended', () => builders(loader).length === 0)
  t.equal((await loader.plan({ package: written.reference, select: ['b'] })).samples, 1)
})

t.test('bobbin filter says what is wrong with an expression (S81)', async t => {
  const written = await writeListed(t)
  const folder = testFolder(t)
  const cli = new Bobbin(join(folder, 'cache'))
  const filter = (where: string) =>
    cli.try('filter', written.reference, '--where', where, '--push', `${folder}/target/test/part`, '-m', 'm')
  const padded = await filter("pad_left('x', `200000000`)")
  t.equal(padded.status, 2)
  t.match(padded.stderr, /must not call pad_left\(\)/)
  const doubled = await filter(`key | ${Array(40).fill('to_string([@, @])').join(' | ')}`)
  t.equal(doubled.status, 2, doubled.stderr)
  t.match(doubled.stderr, /more than 512 MiB|nothing to push/)
  const part = await filter("key == 'b' && length(meta.list) == `1000`")
  t.equal(part.status, 0, part.stderr)
})
