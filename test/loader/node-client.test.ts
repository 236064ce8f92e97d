/** The client for Node.js, with the real service: order, bytes, restarts, damage on the way. */
import { once } from 'node:events'
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer, request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { dirname, join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { type Batch, LoaderClient, LoaderError, type Plan, type Transport } from '../../loader/client/index.js'
import { testFolder, until } from '../support/daemon.js'
import { startFaultProxy } from '../support/fault-proxy.js'
import { type RunningLoader, startLoader } from '../support/loader.js'
import type { WrittenPackage } from '../support/registry.js'
import { writeSamples } from '../support/samples.js'

t.setTimeout(600_000)

const TOKEN = 'a-token-of-some-length'
const SAMPLES = 50
const folder = testFolder(t)
const written = await writeSamples(join(folder, 'registry'), SAMPLES)
const loader = await startLoader(t)
const client = new LoaderClient(`unix:${loader.socket}`)
t.teardown(() => client.close())
const body = { package: written.reference, batch: { global: 8 } } as const
const plan = await client.createPlan(body)

async function all(batches: AsyncIterable<Batch>): Promise<Batch[]> {
  const list: Batch[] = []
  for await (const batch of batches) list.push(batch)
  return list
}

/** Every byte is its source's; gives the keys of the images, without what the tail repeats. */
function checked(t: Test, batches: readonly Batch[], from: WrittenPackage): string[] {
  const keys: string[] = []
  let wrong = 0
  for (const { samples } of batches) {
    for (const { files, keys: named, isPad, meta, errors } of samples) {
      for (const [suffix, content] of files) {
        const key = named.get(suffix)!
        if (!content.equals(readFileSync(from.paths.get(key)!))) wrong++
      }
      if (errors.size > 0 || files.size !== 2 || (meta.jpg as { name: string }).name !== named.get('jpg')) wrong++
      if (!isPad) keys.push(named.get('jpg')!)
    }
  }
  t.equal(wrong, 0, 'bytes, keys and metadata are right')
  return keys
}

const code = (wanted: string) => (error: unknown) => error instanceof LoaderError && error.code === wanted

async function refuses(t: Test, run: () => Promise<unknown>, wanted: string): Promise<void> {
  await run().then(
    () => t.fail(`it should be refused with ${wanted}`),
    error => t.ok(code(wanted)(error), `${wanted}: ${error.message}`),
  )
}

const order = (transport: Transport) => all(plan.batches({ epoch: 3, transport }))

t.test('an epoch is the same by paths and as tar, each sample once', async t => {
  const [paths, tar] = [await order('paths'), await order('tar')]
  const keys = checked(t, paths, written)
  t.equal(new Set(keys).size, SAMPLES)
  t.equal(keys.length, SAMPLES)
  t.same(checked(t, tar, written), keys)
  t.same(
    paths.map(({ epoch, step, cursor }) => ({ epoch, step, cursor })),
    tar.map(({ epoch, step, cursor }) => ({ epoch, step, cursor })),
  )
  t.equal(paths.length, plan.facts.stepsPerEpoch)
  for (const world of [2, 4]) {
    const parts = await Promise.all(
      Array.from({ length: world }, (_, rank) => all(plan.batches({ epoch: 3, world, rank, verify: true }))),
    )
    const together = paths.map((_, i) => ({ ...paths[i]!, samples: parts.flatMap(part => part[i]!.samples) }))
    t.same(checked(t, together, written), keys, `${world} ranks`)
  }
  const workers = await Promise.all([0, 1, 2].map(step => all(plan.batches({ epoch: 3, step, stride: 3 }))))
  const woven = paths.map((_, i) => workers[i % 3]![Math.floor(i / 3)]!)
  t.same(checked(t, woven, written), keys, 'three workers')
  await until('leases are let go', async () => (await loader.ask('/v1/status')).json().pathLeases === 0)
})

t.test('who names no sidecar finds the one of the cache, or is told where there was none', async t => {
  const names = ['BOBBIN_SIDECAR', 'BOBBIN_CACHE', 'CACHE_DIRECTORY', 'XDG_CACHE_HOME'] as const
  const before = names.map(name => [name, process.env[name]] as const)
  const set = (name: string, value?: string) => {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
  t.teardown(() => before.forEach(([name, value]) => void set(name, value)))
  for (const name of names) set(name)
  const create = async () => {
    const found = new LoaderClient()
    t.teardown(() => found.close())
    return (await found.createPlan(body, { patienceMs: 50 })).id
  }
  for (const name of ['CACHE_DIRECTORY', 'BOBBIN_CACHE']) {
    set(name, loader.cacheDir)
    t.equal(await create(), plan.id, name)
    set(name)
  }
  process.env.XDG_CACHE_HOME = join(folder, 'nothing')
  const own = join(folder, 'nothing/bobbin/loader/loader.sock')
  const looked = `there is no socket ${own}, there is no socket /run/bobbin-loader/loader.sock`
  await t.rejects(create(), { code: 'SIDECAR_UNREACHABLE', message: new RegExp(looked.replaceAll('.', '\\.')) })

  const started = new LoaderClient()
  t.teardown(() => started.close())
  const early = started.createPlan(body, { patienceMs: 60_000 })
  // So that it has looked once.
  await sleep(200)
  mkdirSync(dirname(own), { recursive: true })
  symlinkSync(loader.socket, own)
  t.equal((await early).id, plan.id, 'a client that starts before its loader finds it when it comes')

  // Modes would not stop root.
  const loop = join(folder, 'loop')
  symlinkSync(loop, loop)
  const blocked = new LoaderClient(`unix:${loop}`)
  t.teardown(() => blocked.close())
  const refused = blocked.createPlan(body, { patienceMs: 3_600_000 })
  await t.rejects(
    refused,
    { code: 'SIDECAR_UNREACHABLE', message: /may not open .*ELOOP/ },
    'and asks in vain only once',
  )
})

t.test('a relative path of a package is taken from here, not from where the sidecar runs', async t => {
  const here = process.cwd()
  t.teardown(() => process.chdir(here))
  process.chdir(folder)
  const name = written.reference.slice(written.registry.length)
  t.equal((await client.createPlan({ ...body, package: `./registry${name}` })).id, plan.id)
})

t.test('a cursor leads on, and a foreign one does not', async t => {
  const whole = await order('paths')
  for (const at of [1, 4, whole.length - 1]) {
    const rest = await all(plan.batches({ cursor: whole[at - 1]!.cursor, transport: at === 4 ? 'tar' : 'auto' }))
    t.same(checked(t, rest, written), checked(t, whole.slice(at), written))
  }
  t.match(await plan.checkCursor(whole.at(-1)!.cursor), { epoch: 4, step: 0 })
  t.equal(whole[0]!.cursor, plan.cursor(3, 1))
  const other = await client.createPlan({ ...body, batch: { global: 4 } })
  await refuses(t, () => all(other.batches({ cursor: whole[0]!.cursor })), 'CURSOR_FOREIGN')
  await refuses(t, () => all(plan.batches({ cursor: 'nonsense' })), 'INVALID_ARGUMENT')
  await refuses(t, () => all(plan.batches({ world: 3 })), 'INVALID_ARGUMENT')
  await refuses(t, () => all(plan.batches({ world: 2, rank: 2 })), 'INVALID_ARGUMENT')
  await refuses(t, () => client.createPlan({ ...body, select: ['none'] }), 'INVALID_ARGUMENT')
  await refuses(t, () => client.plan('0'.repeat(64)), 'PLAN_NOT_FOUND')
})

t.test('samples come by position, and an uneven tail has ranks without any', async t => {
  const [first] = await order('tar')
  const some = await plan.samplesAt([5, 0, 5], { epoch: 3 })
  t.same(
    some.map(({ keys }) => keys.get('jpg')),
    [5, 0, 5].map(i => first!.samples[i]!.keys.get('jpg')),
  )
  const uneven = await client.createPlan({ ...body, batch: { global: 8, tail: 'uneven' } })
  for (const transport of ['paths', 'tar'] as const) {
    const ranks = Array.from({ length: 8 }, (_, rank) => all(uneven.batches({ world: 8, rank, transport })))
    const last = (await Promise.all(ranks)).map(batches => batches.at(-1)!.samples.length)
    t.same(last.toSorted(), [0, 0, 0, 0, 0, 0, 1, 1], transport)
  }
  t.same({ ...(await client.plan(plan.id)).facts, bytesCached: 0 }, { ...plan.facts, bytesCached: 0 })
})

t.test('manifests of one top hash give the same bytes, however they are written', async t => {
  const plain = await writeSamples(join(folder, 'spelled'), 8, { name: 'test/spelled', bytes: 100 })
  const answers = async (from: RunningLoader) => {
    const { planId } = await from.plan({ package: plain.reference, batch: { global: 8 } })
    const path = `/v1/plans/${planId}/batches`
    const tar = await from.ask(path)
    const lines = await from.ask(path, { headers: { accept: 'application/vnd.bobbin.paths+ndjson' } })
    const samples = /"samples":.*(?=,"sha256")/.exec(lines.body.toString())![0]
    return { etag: tar.headers.etag, tar: tar.body.toString('latin1'), samples }
  }
  const expected = await answers(loader)
  // The same values: other spaces, another order of keys, another spelling of a letter.
  const text = readFileSync(plain.manifestPath, 'utf8')
  const other = text.replace(/\{"name":"train(.*?)","label":(\d)\}/g, '{ "label": $2,\t"name": "\\u0074rain$1" }')
  t.not(other, text)
  writeFileSync(plain.manifestPath, other)
  t.same(await answers(await startLoader(t)), expected)
})

t.test('what a proxy on the way has encoded is read, or refused by name (S117)', async t => {
  let encoding = 'gzip'
  const proxy = createServer((question, answer) => {
    const { url: path, method, headers } = question
    const asked = request({ socketPath: loader.socket, path, method, headers }, async from => {
      const bytes = await buffer(from)
      const encoded = encoding === 'gzip' ? gzipSync(bytes) : bytes
      answer.writeHead(from.statusCode!, { 'content-encoding': encoding, 'content-length': encoded.length })
      answer.end(encoded)
    })
    question.pipe(asked)
  })
  await once(proxy.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => proxy.close())
  const behind = new LoaderClient(`http://127.0.0.1:${(proxy.address() as AddressInfo).port}`)
  t.teardown(() => behind.close())
  const same = await behind.createPlan(body)
  t.equal(same.id, plan.id)
  const keys = checked(t, await order('tar'), written)
  for (const transport of ['paths', 'tar'] as const)
    t.same(checked(t, await all(same.batches({ epoch: 3, transport })), written), keys, transport)
  await refuses(t, () => behind.plan('0'.repeat(64)), 'PLAN_NOT_FOUND')
  encoding = 'br'
  for (const transport of ['paths', 'tar'] as const)
    await refuses(t, () => all(same.batches({ transport })), 'ANSWER_DAMAGED')
  await refuses(t, () => behind.createPlan(body), 'ANSWER_DAMAGED')
})

t.test('what is missing is an error, or marked', async t => {
  const broken = await writeSamples(join(folder, 'broken'), 16, { name: 'test/broken', bytes: 4000 })
  rmSync(broken.paths.get('train/000005.jpg')!)
  const fails = await client.createPlan({ ...body, package: broken.reference })
  const marks = await client.createPlan({ ...body, package: broken.reference, onMissing: 'mark' })
  for (const transport of ['paths', 'tar'] as const) {
    await refuses(t, () => all(fails.batches({ transport })), 'OBJECT_GONE')
    const samples = (await all(marks.batches({ transport }))).flatMap(batch => batch.samples)
    t.equal(samples.length, 16)
    const [marked] = samples.filter(({ errors }) => errors.size > 0)
    t.equal(marked!.keys.get('jpg'), 'train/000005.jpg')
    t.match(marked!.errors.get('jpg'), { code: 'OBJECT_GONE' })
    t.same([...marked!.files.keys()], ['cls'])
  }
})

t.test('a killed sidecar costs time, and nothing else, also when it has forgotten the plan', async t => {
  const keys = checked(t, await order('tar'), written)
  for (const transport of ['paths', 'tar'] as const) {
    const batches: Batch[] = []
    for await (const batch of plan.batches({ epoch: 3, transport })) {
      batches.push(batch)
      if (batches.length === 2) {
        await loader.end('SIGKILL')
        if (transport === 'tar') rmSync(join(loader.cacheDir, 'loader', 'v1'), { recursive: true })
        setTimeout(() => void loader.start(), 300)
      }
    }
    t.same(checked(t, batches, written), keys, transport)
  }
  await loader.end('SIGKILL')
  await refuses(t, () => all(plan.batches({ patienceMs: 400 })), 'SIDECAR_UNREACHABLE')
  await loader.start()
})

t.test('over TCP, through a line that cuts, damages and refuses', async t => {
  const args = ['--listen', '127.0.0.1:0', '--serve', written.reference]
  const tcp = await startLoader(t, { args, env: { BOBBIN_LOADER_TOKEN: TOKEN } })
  const proxy = await startFaultProxy(tcp.addresses[0]!)
  t.teardown(() => proxy.stop())
  const stranger = new LoaderClient(proxy.endpoint)
  await refuses(t, () => stranger.createPlan(body), 'UNAUTHENTICATED')
  const far = new LoaderClient(proxy.endpoint.replace('//', `//bobbin:${TOKEN}@`))
  t.teardown(() => [stranger, far].map(client => client.close()))
  const farPlan: Plan = await far.createPlan(body)
  t.equal(farPlan.id, plan.id, 'another sidecar makes the same plan')
  const keys = checked(t, await order('tar'), written)
  const match = ({ url }: { url: string }) => url.includes('/batches')
  for (const afterBytes of [0, 100, 600, 5000, 30_000]) {
    proxy.fault({ kind: 'cut', afterBytes }, { times: 1, match })
    proxy.fault({ kind: 'reset', afterBytes: afterBytes + 1 }, { times: 1, match })
  }
  proxy.fault({ kind: 'status', status: 503, headers: { 'retry-after': '0' }, body: 'not now' }, { times: 1, match })
  t.same(checked(t, await all(farPlan.batches({ epoch: 3, transport: 'tar' })), written), keys)

  proxy.clear()
  for (const transport of ['tar', 'paths'] as const) {
    const accept = transport === 'tar' ? 'application/x-tar' : 'application/vnd.bobbin.paths+ndjson'
    const headers = { accept, authorization: `Bearer ${TOKEN}` }
    const { body } = await tcp.ask(`/v1/plans/${plan.id}/batches?epoch=3`, { base: tcp.addresses[0]!, headers })
    // A digit becomes another one: JSON it stays.
    proxy.fault({ kind: 'flip', atByte: body.indexOf('"label":') + 8 }, { times: 1, match })
    await refuses(t, () => all(farPlan.batches({ epoch: 3, transport, verify: false })), 'ANSWER_DAMAGED')
    proxy.clear()
  }
  let noticed = 0
  for (let atByte = 700; atByte < 40_000; atByte += 1777) {
    proxy.fault({ kind: 'flip', atByte }, { times: 1, match })
    try {
      t.same(checked(t, await all(farPlan.batches({ epoch: 3, transport: 'tar' })), written), keys)
    } catch (error) {
      noticed++
      t.ok(code('ANSWER_DAMAGED')(error), String(error))
    }
    proxy.clear()
  }
  t.ok(noticed > 5, `${noticed} times it was noticed by a hash`)
})
