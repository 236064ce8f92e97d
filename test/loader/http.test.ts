/** The service over HTTP: plans, tars, paths, single entries; loader/protocol.md is what it is held to. */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { runProgram } from '../support/cli.js'
import { testFolder, until } from '../support/daemon.js'
import { type PlanAnswer, type RunningLoader, startLoader, untar } from '../support/loader.js'
import { noise } from '../support/objects.js'
import { type WrittenPackage, writeRegistry } from '../support/registry.js'
import { writeSamples } from '../support/samples.js'

t.setTimeout(600_000)

const PATHS = 'application/vnd.bobbin.paths+ndjson'
const PROBLEM = /^application\/problem\+json/

interface IndexMember {
  readonly plan: string
  readonly steps: readonly number[]
  readonly cursor: string
  readonly samples: readonly {
    readonly pos: number
    readonly pad: boolean
    readonly files: Record<string, { readonly key: string; readonly size: number; readonly hash: string }>
  }[]
}

const folder = testFolder(t)
const written = await writeSamples(join(folder, 'registry'), 20)
const loader = await startLoader(t)
const body = { package: written.reference, batch: { global: 8 } }
const plan = await loader.plan(body)
const batches = `/v1/plans/${plan.planId}/batches`

function shardOf({ shards }: PlanAnswer, shard: number, { epoch = 0, world = 1, rank = 0 } = {}): string {
  const parts = { epoch, world, rank, shard: String(shard).padStart(6, '0') }
  return `/wds/${shards.replace(/\{(\w+)\}/g, (_, name) => String(parts[name as keyof typeof parts]))}`
}

/** What is wrong with a tar, or nothing: its index, its end, and each file against its source. */
function checkTar(t: Test, tar: Buffer, from: WrittenPackage): IndexMember {
  const members = untar(tar)
  const index = JSON.parse(members[0]!.content.toString()) as IndexMember
  const end = JSON.parse(members.at(-1)!.content.toString())
  const contents = new Map(members.map(({ name, content }) => [name, content]))
  t.equal(members[0]!.name, '__bobbin__/index.json')
  t.equal(members.at(-1)!.name, '__bobbin__/end.json')
  t.equal(contents.size, members.length, 'no name is twice')
  t.equal(end.indexSha256, createHash('sha256').update(members[0]!.content).digest('hex'))
  t.equal(end.members, members.length - 1)
  t.equal(end.samples, index.samples.length)
  for (const { pos, pad, files } of index.samples) {
    const base = String(pos).padStart(8, '0')
    t.equal(contents.has(`${base}.pad`), pad)
    for (const [suffix, { key, size }] of Object.entries(files)) {
      const content = contents.get(`${base}.${suffix}`)
      t.equal(content?.length, size)
      t.ok(content?.equals(readFileSync(from.paths.get(key)!)), `${key} is its source`)
    }
  }
  return index
}

t.test('a plan is made once and then found, and another sidecar gives it the same id', async t => {
  const again = await loader.ask('/v1/plans', { body })
  t.equal(again.status, 200)
  t.match(again.json(), { planId: plan.planId, samples: 20, entries: 40, stepsPerEpoch: 3, topHash: written.topHash })
  t.match((await loader.ask(`/v1/plans/${plan.planId}`)).json(), { planId: plan.planId, plan: { v: 1 } })
  const other = await startLoader(t)
  const made = await other.ask('/v1/plans', { body: { ...body, select: ['**', '**'] } })
  t.equal(made.status, 201)
  t.equal(made.json().planId, plan.planId)
})

t.test('plans that make no sense are refused in words', async t => {
  const cases: readonly [object, number, RegExp][] = [
    [{ ...body, where: 'size >' }, 400, /where|JMESPath/i],
    [{ ...body, select: [`a/${'{'.repeat(3)}[`], where: null }, 400, /./],
    [{ ...body, select: ['nothing/**'] }, 400, /nothing|select/],
    [{ ...body, batch: { global: 1000, tail: 'drop' } }, 400, /drop/],
    [{ ...body, topHash: 'f'.repeat(64) }, 400, /top hash|f{8}/],
    [{ ...body, batch: { globl: 8 } }, 400, /batch must NOT have additional properties: "globl"/],
    [{ ...body, meta: 'jpg' }, 400, /jpg/],
    [{ ...body, package: 'file:///nowhere/a/b' }, 404, /nowhere/],
    [{}, 400, /package/],
  ]
  for (const [wish, status, words] of cases) {
    const answer = await loader.ask('/v1/plans', { body: wish })
    t.equal(answer.status, status, JSON.stringify(wish), { body: answer.body.toString() })
    t.match(answer.headers['content-type'], PROBLEM)
    t.match(answer.json().detail, words)
  }
  const form = await runProgram('curl', [
    ...['--silent', '--unix-socket', loader.socket, 'http://bobbin/v1/plans', '--data', JSON.stringify(body)],
  ])
  t.match(form.stdout, /"status":415.*send application\/json/, 'a body that curl calls a form')
  const unknown = await loader.ask(`/v1/plans/${'0'.repeat(64)}`)
  t.equal(unknown.status, 404)
  t.match(unknown.json(), { code: 'PLAN_NOT_FOUND' })
})

t.test('an epoch as tar has every sample once, repeated ones marked, byte for byte', async t => {
  const keys: string[] = []
  for (let step = 0; step < 3; step++) {
    const answer = await loader.ask(`${batches}?step=${step}`)
    t.equal(answer.status, 200)
    t.equal(Number(answer.headers['content-length']), answer.body.length)
    const index = checkTar(t, answer.body, written)
    for (const { pad, files } of index.samples) if (!pad) keys.push(files.jpg!.key)
    if (step === 2) t.equal(index.samples.filter(({ pad }) => pad).length, 4)
  }
  t.equal(new Set(keys).size, 20)
  t.equal(keys.length, 20)
})

t.test('the metadata member is what the manifest has', async t => {
  const members = untar((await loader.ask(`${batches}?step=0`)).body)
  const index = JSON.parse(members[0]!.content.toString()) as IndexMember
  for (const { pos, files } of index.samples) {
    const meta = members.find(({ name }) => name === `${String(pos).padStart(8, '0')}.json`)
    const row = written.rows.find(({ logical_key }) => logical_key === files.jpg!.key)
    const { jpg, cls } = JSON.parse(meta!.content.toString())
    t.strictSame({ user_meta: jpg }, row!.meta)
    t.equal(cls, null)
  }
})

t.test('the ranks of a step are its parts, for every world that divides the batch', async t => {
  const whole = checkTar(t, (await loader.ask(`${batches}?step=1`)).body, written).samples.map(({ pos }) => pos)
  for (const world of [2, 4, 8]) {
    const parts: number[] = []
    for (let rank = 0; rank < world; rank++) {
      const { body } = await loader.ask(`${batches}?step=1&world=${world}&rank=${rank}`)
      for (const { pos } of checkTar(t, body, written).samples) parts.push(pos)
    }
    t.same(parts, whole)
  }
  for (const query of [
    'world=3',
    'world=2&rank=2',
    'world=0',
    'n=0',
    'n=1001',
    'stride=0',
    'step=3',
    'step=0&cursor=x',
    'x=1',
  ]) {
    const answer = await loader.ask(`${batches}?${query}`)
    t.equal(answer.status, 400, query)
    t.match(answer.headers['content-type'], PROBLEM)
  }
})

t.test('a group by entry numbers each file by itself', async t => {
  const entries = await loader.plan({ ...body, group: { by: 'entry' } })
  t.equal(entries.samples, 40)
  const index = checkTar(t, (await loader.ask(`/v1/plans/${entries.planId}/batches`)).body, written)
  for (const { files } of index.samples) t.equal(Object.keys(files).length, 1)
})

t.test('a shard has ETag, ranges, conditions and HEAD (S36)', async t => {
  const path = shardOf(plan, 1)
  const { status, headers, body: whole } = await loader.ask(path)
  t.equal(status, 200)
  checkTar(t, whole, written)
  const etag = String(headers.etag)
  t.match(etag, /^"[\w-]+"$/)
  t.match(headers['cache-control'], /immutable/)
  const head = await loader.ask(path, { method: 'HEAD' })
  t.equal(head.status, 200)
  t.equal(head.headers['content-length'], String(whole.length))
  t.equal(head.body.length, 0)
  const cases: readonly [string, number, number][] = [
    ['bytes=0-0', 0, 1],
    ['bytes=0-511', 0, 512],
    ['bytes=511-1024', 511, 1025],
    ['bytes=700-', 700, whole.length],
    ['bytes=-1000', whole.length - 1000, whole.length],
    [`bytes=5-${whole.length + 99}`, 5, whole.length],
  ]
  for (const [range, from, to] of cases) {
    const part = await loader.ask(path, { headers: { range } })
    t.equal(part.status, 206, range)
    t.equal(part.headers['content-range'], `bytes ${from}-${to - 1}/${whole.length}`)
    t.ok(part.body.equals(whole.subarray(from, to)))
  }
  const beyond = await loader.ask(path, { headers: { range: `bytes=${whole.length}-` } })
  t.equal(beyond.status, 416)
  t.equal(beyond.headers['content-range'], `bytes */${whole.length}`)
  t.match(beyond.headers['content-type'], PROBLEM)
  for (const range of ['bytes=0-1,4-5', 'lines=0-1', 'nonsense']) {
    const all = await loader.ask(path, { headers: { range } })
    t.equal(all.status, 200, range)
    t.ok(all.body.equals(whole))
  }
  const same = await loader.ask(path, { headers: { range: 'bytes=3-9', 'if-range': etag } })
  t.equal(same.status, 206)
  const other = await loader.ask(path, { headers: { range: 'bytes=3-9', 'if-range': '"other"' } })
  t.equal(other.status, 200)
  for (const header of [etag, `W/${etag}`, `"a", ${etag}`, '*']) {
    const none = await loader.ask(path, { headers: { 'if-none-match': header } })
    t.equal(none.status, 304, header)
    t.equal(none.body.length, 0)
  }
})

t.test('what is read by ranges is written down as delivered', async t => {
  const ranged = await loader.plan({ ...body, order: { algo: 'qperm-1', seed: 'ranged' } })
  const part = await loader.ask(shardOf(ranged, 1), { headers: { range: 'bytes=0-' } })
  t.equal(part.status, 206)
  const file = join(loader.cacheDir, 'loader', 'v1', 'deliveries.ndjson')
  const deliveries = () =>
    (existsSync(file) ? readFileSync(file, 'utf8').trimEnd().split('\n') : [])
      .map(line => JSON.parse(line))
      .filter(({ plan }) => plan === ranged.planId)
  await until('it is written down', async () => deliveries().length > 0)
  t.match(deliveries(), [{ steps: [1], samples: 8, as: 'tar', outcome: 'delivered' }])
})

t.test('ranges put together are the whole', async t => {
  const path = shardOf(plan, 0)
  const { body: whole } = await loader.ask(path)
  // Cuts anywhere, and always the same ones.
  const cuts = Array.from({ length: 40 }, (_, i) => (i * 7919 * 31) % whole.length).sort((a, b) => a - b)
  const parts: Buffer[] = []
  for (const [i, from] of [0, ...cuts].entries()) {
    const to = cuts[i] ?? whole.length
    if (to > from) parts.push((await loader.ask(path, { headers: { range: `bytes=${from}-${to - 1}` } })).body)
  }
  t.ok(Buffer.concat(parts).equals(whole))
})

t.test('curl reads over the socket, and goes on with a file that was cut', async t => {
  const path = shardOf(plan, 2)
  const { body: whole } = await loader.ask(path)
  const file = join(folder, 'curled.tar')
  const curl = (...args: string[]) =>
    runProgram('curl', ['-sSf', '--unix-socket', loader.socket, '-o', file, ...args, `http://bobbin${path}`])
  t.equal((await curl()).status, 0)
  t.ok(readFileSync(file).equals(whole))
  truncateSync(file, 5000)
  const { status, stderr } = await curl('-C', '-')
  t.equal(status, 0, stderr)
  t.ok(readFileSync(file).equals(whole))
})

t.test('any number of plans can be in use at once', async t => {
  const seeds = Array.from({ length: 14 }, (_, i) => `many${i}`)
  const ids: string[] = []
  for (const seed of seeds) ids.push((await loader.plan({ ...body, order: { algo: 'qperm-1', seed } })).planId)
  for (let step = 0; step < 3; step++) {
    const answers = await Promise.all(ids.map(id => loader.ask(`/v1/plans/${id}/batches?step=${step}`)))
    for (const { status, body } of answers) t.equal(status, 200, status === 200 ? '' : body.toString())
  }
})

t.test('a plan that is posted with another address is read from there, too, and stays where it was made', async t => {
  const [first, second] = [join(folder, 'first'), join(folder, 'second')]
  const mirrors = [await writeSamples(first, 8, { bytes: 1000 }), await writeSamples(second, 8, { bytes: 1000 })]
  const [before, after] = [
    await loader.plan({ ...body, package: mirrors[0]!.reference }),
    await loader.plan({ ...body, package: mirrors[1]!.reference }),
  ]
  t.equal(after.planId, before.planId)
  rmSync(first, { recursive: true })
  const answer = await loader.ask(`/v1/plans/${before.planId}/batches`)
  t.equal(answer.status, 200, answer.status === 200 ? '' : answer.body.toString())
  checkTar(t, answer.body, mirrors[1]!)
  t.match((await loader.ask(`/v1/plans/${before.planId}`)).json(), { package: mirrors[0]!.reference })
})

t.test('shards of foreign plans, top hashes and places are refused', async t => {
  const path = shardOf(plan, 0)
  const cases: readonly [string, number][] = [
    [path.replace(/p[0-9a-f]{16}/, `p${'0'.repeat(16)}`), 404],
    [path.replace(/q[0-9a-f]{16}/, `q${'0'.repeat(16)}`), 404],
    [shardOf(plan, 3), 400],
    [shardOf(plan, 0, { world: 3 }), 400],
    ['/wds/nonsense.tar', 400],
  ]
  for (const [wrong, status] of cases) t.equal((await loader.ask(wrong)).status, status, wrong)
})

t.test('a cursor leads on from where an answer ended, and is refused elsewhere', async t => {
  const members = untar((await loader.ask(`${batches}?step=0&n=2`)).body)
  const { cursor } = JSON.parse(members.at(-1)!.content.toString()) as { cursor: string }
  t.ok(cursor.length <= 256)
  const facts = await loader.ask('/v1/cursor/check', { body: { plan: plan.planId, cursor } })
  t.same(facts.json(), { epoch: 0, step: 2, position: 16, stepsLeft: 1, samplesLeft: 8 })
  const last = await loader.ask(`${batches}?cursor=${cursor}`)
  t.ok(last.body.equals((await loader.ask(`${batches}?step=2`)).body))
  const next = JSON.parse(untar(last.body).at(-1)!.content.toString()).cursor
  t.match((await loader.ask('/v1/cursor/check', { body: { plan: plan.planId, cursor: next } })).json(), {
    epoch: 1,
    step: 0,
  })
  const other = await loader.plan({ ...body, batch: { global: 4 } })
  const foreign = await loader.ask(`/v1/plans/${other.planId}/batches?cursor=${cursor}`)
  t.equal(foreign.status, 409)
  t.equal(foreign.json().code, 'CURSOR_FOREIGN')
  const damaged = `${cursor.slice(0, 20)}${cursor[20] === 'A' ? 'B' : 'A'}${cursor.slice(21)}`
  for (const wrong of [damaged, cursor.slice(0, -2), 'x', '']) {
    const answer = await loader.ask(`${batches}?cursor=${wrong}`)
    t.equal(answer.status, 400, wrong)
    t.match(answer.headers['content-type'], PROBLEM)
  }
})

t.test('paths name verified files, in the same order as the tar', async t => {
  const { body, headers } = await loader.ask(`${batches}?step=0&n=2`, { headers: { accept: PATHS } })
  t.equal(headers['content-type'], PATHS)
  const lines = body
    .toString()
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line))
  t.equal(lines.length, 3)
  t.match(lines[2], { end: true, cursor: lines[1].cursor })
  const tar = checkTar(t, (await loader.ask(`${batches}?step=0&n=2`)).body, written)
  const samples = [...lines[0].samples, ...lines[1].samples]
  t.same(
    samples.map(({ pos }) => pos),
    tar.samples.map(({ pos }) => pos),
  )
  for (const [i, { files }] of samples.entries()) {
    for (const [suffix, { path, key, size, hash }] of Object.entries<Record<string, never>>(files)) {
      t.match(tar.samples[i]!.files[suffix], { key, size, hash })
      t.ok(readFileSync(join(plan.objects, path!)).equals(readFileSync(written.paths.get(key!)!)))
    }
  }
  t.equal((await loader.ask('/v1/release', { body: { lease: lines[1].lease } })).status, 204)
})

t.test('leases of paths are held until they are released, by either way', async t => {
  const held = async () => (await loader.ask('/v1/status')).json<{ pathLeases: number }>().pathLeases
  const linesOf = async (query: string) =>
    (await loader.ask(`${batches}?${query}`, { headers: { accept: PATHS } })).body
      .toString()
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
  t.equal(await held(), 0)
  const [first, second] = await linesOf('step=0&n=2')
  t.equal(await held(), 2)
  const [session] = first.lease.split('-')
  const [third] = await linesOf(`step=2&session=${session}&release=${first.lease}`)
  t.equal(await held(), 2)
  t.equal(third.lease.split('-')[0], session)
  t.equal((await loader.ask('/v1/release', { body: { lease: third.lease } })).status, 204)
  t.equal(await held(), 0, 'that lease, and all before it')
  t.equal((await loader.ask('/v1/release', { body: { lease: second.lease } })).status, 204, 'twice is no error')
  await linesOf(`step=0&n=2&session=${session}`)
  const [other] = await linesOf('step=0')
  t.equal(await held(), 3)
  const end = async (name: string) => (await loader.ask(`/v1/sessions/${name}`, { method: 'DELETE' })).status
  t.equal(await end(session), 204)
  t.equal(await held(), 1, "all of a session, and no other's")
  t.equal(await end(session), 204, 'twice is no error')
  t.equal(await end('-'), 400)
  t.equal(await end(other.lease.split('-')[0]), 204)
  t.equal(await held(), 0)
})

t.test('samples come by position, in the order asked for', async t => {
  const at = `/v1/plans/${plan.planId}/samples`
  const { body: tar, headers } = await loader.ask(at, { body: { epoch: 1, positions: [17, 3, 5] } })
  t.same(
    checkTar(t, tar, written).samples.map(({ pos }) => pos),
    [17, 3, 5],
  )
  t.equal(headers.etag, undefined)
  const { body: lines } = await loader.ask(at, { body: { epoch: 1, positions: [3] }, headers: { accept: PATHS } })
  t.match(JSON.parse(lines.toString().split('\n')[0]!), { step: null, cursor: null, samples: [{ pos: 3 }] })
  for (const positions of [[24], [], [-1], [1e15], ['1']])
    t.equal((await loader.ask(at, { body: { positions } })).status, 400, JSON.stringify(positions))
})

t.test('an entry comes by its key and by its hash', async t => {
  for (const row of written.rows.filter(({ logical_key }) => logical_key.endsWith('.jpg')).slice(0, 4)) {
    const source = readFileSync(written.paths.get(row.logical_key)!)
    const byKey = await loader.ask(`/v1/p/${written.topHash}/${row.logical_key}`)
    t.equal(byKey.status, 200)
    t.ok(byKey.body.equals(source))
    const hex = row.hash.type === 'SHA256' ? row.hash.value : Buffer.from(row.hash.value, 'base64').toString('hex')
    const byHash = await loader.ask(`/v1/o/${hex}`, { headers: { range: 'bytes=10-99' } })
    t.equal(byHash.status, 206)
    t.ok(byHash.body.equals(source.subarray(10, 100)))
    const etag = String(byKey.headers.etag)
    t.ok(etag.includes(hex))
    t.equal((await loader.ask(`/v1/o/${hex}`, { headers: { 'if-none-match': etag } })).status, 304)
    t.equal((await loader.ask(`/v1/o/${hex}`, { method: 'HEAD' })).headers['content-length'], String(source.length))
    const digest = `sha-256=:${createHash('sha256').update(source).digest('base64')}:`
    t.equal(byKey.headers['repr-digest'], row.hash.type === 'SHA256' ? digest : undefined)
  }
  t.equal((await loader.ask(`/v1/p/${written.topHash}/none`)).status, 404)
  t.equal((await loader.ask(`/v1/p/${'0'.repeat(64)}/train/000000.jpg`)).status, 404)
  t.equal((await loader.ask(`/v1/o/${'0'.repeat(64)}`)).status, 404)
})

t.test('a list comes in the order asked for, with parts and marks', async t => {
  const [a, b] = ['train/000003.jpg', 'train/000001.cls']
  const source = readFileSync(written.paths.get(a)!)
  const entries = [
    { key: b },
    { key: a, start: 7, length: 100, opaque: { mine: 1 } },
    { key: a },
    { key: a, start: source.length },
  ]
  const { body: tar } = await loader.ask('/v1/get', { body: { topHash: written.topHash, entries } })
  const members = untar(tar)
  t.same(
    members.map(({ name }) => name),
    ['__bobbin__/index.json', '00000000.bin', '00000001.bin', '00000002.bin', '00000003.bin', '__bobbin__/end.json'],
  )
  t.ok(members[1]!.content.equals(readFileSync(written.paths.get(b)!)))
  t.ok(members[2]!.content.equals(source.subarray(7, 107)))
  t.ok(members[3]!.content.equals(source))
  t.equal(members[4]!.content.length, 0)
  t.match(JSON.parse(members[0]!.content.toString()), {
    schema: 'bobbin-list-1',
    entries: [{ key: b }, { key: a, start: 7, length: 100, opaque: { mine: 1 } }, {}, {}],
  })
  const wrong: readonly [object, number][] = [
    [{ topHash: written.topHash, entries: [] }, 400],
    [{ topHash: written.topHash, entries: [{}] }, 400],
    [{ topHash: written.topHash, entries: [{ key: 'none' }] }, 404],
    [{ topHash: written.topHash, entries: [{ key: a, start: source.length + 1 }] }, 400],
    [{ entries: [{ hash: '0'.repeat(64) }] }, 404],
    [{ entries: [{ key: a }] }, 400],
  ]
  for (const [wish, status] of wrong)
    t.equal((await loader.ask('/v1/get', { body: wish })).status, status, JSON.stringify(wish))
})

t.test('answers leave no lease of single objects, whatever became of them', async () => {
  const row = written.rows.find(({ hash }) => hash.type === 'SHA256')!
  const path = `/v1/o/${row.hash.value}`
  const { headers } = await loader.ask(path)
  await loader.ask(path, { method: 'HEAD' })
  await loader.ask(path, { headers: { 'if-none-match': String(headers.etag) } })
  await loader.ask(path, { headers: { range: 'bytes=99999999-' } })
  await loader.ask('/v1/get', { body: { entries: [{ hash: row.hash.value, start: 1e9 }] } })
  await loader.ask('/v1/get', {
    body: { topHash: written.topHash, entries: [{ hash: row.hash.value }, { key: 'none' }] },
  })
  // What is fetched ahead for the ranks above is let go by its own clock, so only what is pinned by none counts.
  const before = await pinned(loader)
  for (let i = 0; i < 5; i++) await loader.ask(path, { method: 'HEAD' })
  await until('nothing more is pinned', async () => (await pinned(loader)) <= before)
})

async function pinned(of: RunningLoader): Promise<number> {
  return (await of.cli.json<{ cache: { pinnedBytes: number } }>('status')).cache.pinnedBytes
}

t.test('what cannot be had is a problem of its step, and a cut connection behind another step', async t => {
  const mib = 2 ** 20
  const files = Object.fromEntries(
    Array.from({ length: 12 }, (_, i) => [`f${String(i).padStart(2, '0')}.bin`, noise(2 * mib, i)]),
  )
  const broken = await writeRegistry(join(folder, 'broken'), 'test/broken', files)
  const wish = { package: broken.reference, order: { algo: 'sequential' }, batch: { global: 12 } }
  rmSync(broken.paths.get('f09.bin')!)
  writeFileSync(broken.paths.get('f10.bin')!, noise(2 * mib, 99))
  const fails = await loader.plan(wish)
  const late = await loader.ask(`/v1/plans/${fails.planId}/batches`)
  t.equal(late.status, 404, 'however far behind the first byte')
  t.match(late.json(), { code: 'OBJECT_GONE', detail: /f09\.bin/ })
  const steps = `/v1/plans/${(await loader.plan({ ...wish, batch: { global: 4 } })).planId}/batches`
  await t.rejects(loader.ask(`${steps}?n=3`), 'never a short answer that looks whole')
  const short = await loader.ask(`${steps}?n=3`)
  t.same(checkTar(t, short.body, broken).steps, [0, 1], 'who asks again gets what comes before it')
  const third = await loader.ask(`${steps}?step=2`)
  t.equal(third.status, 404)
  t.match(third.json(), { code: 'OBJECT_GONE', detail: /f09\.bin/ })
  const early = await loader.plan({ ...wish, select: ['f09.bin', 'f10.bin'], batch: { global: 2 } })
  const problem = await loader.ask(`/v1/plans/${early.planId}/batches`)
  t.equal(problem.status, 404)
  t.match(problem.headers['content-type'], PROBLEM)
  t.match(problem.json(), { code: 'OBJECT_GONE', detail: /f09\.bin/ })
  const damaged = await loader.plan({ ...wish, select: ['f10.bin', 'f11.bin'], batch: { global: 1 } })
  const refused = await loader.ask(`/v1/plans/${damaged.planId}/batches?step=0`)
  t.equal(refused.status, 502)
  t.match(refused.json(), { code: 'OBJECT_CORRUPT', detail: /f10\.bin/ })

  const marks = await loader.plan({ ...wish, onMissing: 'mark' })
  const { headers, body: tar } = await loader.ask(`/v1/plans/${marks.planId}/batches`)
  t.equal(headers.etag, undefined)
  t.equal(headers['cache-control'], 'no-store')
  const members = untar(tar)
  t.match(JSON.parse(members.find(({ name }) => name === '00000009.bin.error.json')!.content.toString()), {
    key: 'f09.bin',
    code: 'OBJECT_GONE',
  })
  t.match(JSON.parse(members.find(({ name }) => name === '00000010.bin.error.json')!.content.toString()), {
    key: 'f10.bin',
    code: 'OBJECT_CORRUPT',
  })
  t.equal(members.filter(({ name }) => name.endsWith('.bin')).length, 10)
  const paths = await loader.ask(`/v1/plans/${marks.planId}/batches`, { headers: { accept: PATHS } })
  const [line] = paths.body.toString().split('\n')
  t.match(JSON.parse(line!).samples[9].files.bin, { error: { code: 'OBJECT_GONE' }, key: 'f09.bin', size: 2 * mib })
})

t.test('openapi.json says what every route answers, and /metrics is what Prometheus reads', async t => {
  const api = (await loader.ask('/openapi.json')).json<{
    openapi: string
    paths: Record<string, Record<string, { responses?: object }>>
  }>()
  t.match(api.openapi, /^3\./)
  t.ok(Object.keys(api.paths).length >= 12)
  for (const [path, verbs] of Object.entries(api.paths))
    for (const [verb, { responses }] of Object.entries(verbs))
      t.ok(Object.keys(responses ?? {}).length, `${verb} ${path}`)
  const { body, headers } = await loader.ask('/metrics')
  t.match(headers['content-type'], /text\/plain/)
  for (const line of body.toString().trimEnd().split('\n'))
    t.match(line, /^$|^# (HELP|TYPE) \w+ .+|^\w+(\{(\w+="[^"]*",?)*\})? (-?[\d.e+-]+|NaN|[+-]Inf)$/)
  t.match(body.toString(), /bobbin_loader_samples_total\{as="tar",outcome="delivered"\} [1-9]/)
  t.equal((await loader.ask('/livez')).status, 200)
  t.equal((await loader.ask('/readyz')).status, 200)
})

t.test('a client that goes in the middle is no trouble for the next', async t => {
  for (let i = 0; i < 5; i++) {
    await new Promise<void>(resolve => {
      const call = request({ socketPath: loader.socket, path: `${batches}?n=3` }, response => {
        response.once('data', () => call.destroy())
        response.on('error', () => {}).once('close', resolve)
      })
      call.on('error', () => {}).end()
    })
  }
  await until('no stream is left', async () => (await loader.ask('/v1/status')).json().streams === 0)
  t.equal((await loader.ask(`${batches}?n=3`)).status, 200)
})

t.test('a restart keeps plans, and the bytes and ETags of their shards (S36)', async t => {
  const before = await loader.ask(shardOf(plan, 1))
  t.equal(await loader.end('SIGTERM'), 0)
  await loader.start()
  const after = await loader.ask(shardOf(plan, 1))
  t.equal(after.status, 200)
  t.equal(after.headers.etag, before.headers.etag)
  t.ok(after.body.equals(before.body))
})

t.test('a sample table or an index that is damaged meanwhile is made again, for tar and for paths', async t => {
  const damage = (path: string, at: number) => {
    const bytes = readFileSync(path)
    bytes[Math.min(at, bytes.length - 100)]! ^= 0xff
    writeFileSync(path, bytes)
  }
  const packages = join(loader.cacheDir, 'packages', 'v1')
  const index = () =>
    readdirSync(packages, { recursive: true, encoding: 'utf8' })
      .filter(name => name.includes(written.topHash) && name.endsWith('.index'))
      .map(name => join(packages, name))[0]!
  for (const accept of ['application/x-tar', PATHS]) {
    for (const what of ['table', 'index']) {
      const seed = `${what} ${accept}`
      const { planId } = await loader.plan({ ...body, order: { algo: 'qperm-1', seed } })
      // Nothing of it is in memory then.
      await loader.end('SIGTERM')
      damage(what === 'table' ? join(loader.cacheDir, 'loader', 'v1', `${planId}.table`) : index(), 4200)
      await loader.start()
      const answer = await loader.ask(`/v1/plans/${planId}/batches?n=3`, { headers: { accept } })
      t.equal(answer.status, 200, seed, { body: answer.body.subarray(0, 300).toString() })
    }
  }
})
