import { spawn } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { Fetcher, type FetcherOptions } from '../../../../daemon/fetch/fetcher.js'
import { BobbinError, HASH_TYPES, type ObjectSpec } from '../../../../daemon/model/index.js'
import {
  type ObjectHandle,
  objectId,
  objectPath,
  openStore,
  type StoreOptions,
} from '../../../../daemon/store/index.js'
import { hashFileOn } from '../../../../daemon/work/hash-object.js'
import { Workers, type WorkersOptions } from '../../../../daemon/work/workers.js'
import { noise, rememberingLog, writeEntry } from '../../../support/objects.js'
import { smallDisk } from '../../../support/small-disk.js'

const MiB = 2 ** 20

// The S3 server of these tests is a few lines: what matters is what it does wrong.
Object.assign(process.env, {
  AWS_ACCESS_KEY_ID: 'key',
  AWS_SECRET_ACCESS_KEY: 'secret',
  AWS_REGION: 'us-east-1',
  AWS_EC2_METADATA_DISABLED: 'true',
})

interface Fetching {
  readonly fetcher: Fetcher
  readonly cacheDir: string
  readonly source: string
  readonly log: ReturnType<typeof rememberingLog>
  readonly store: FetcherOptions['store']
}

const folders = new WeakMap<Test, string>()

/** `t.testdir` empties the folder each time. */
function folderOf(t: Test): string {
  const folder = folders.get(t) ?? t.testdir({ source: {} })
  folders.set(t, folder)
  return folder
}

async function fetching(
  t: Test,
  options: StoreOptions & { readonly cacheDir?: string; readonly workers?: WorkersOptions } = {},
): Promise<Fetching> {
  const folder = folderOf(t)
  const cacheDir = options.cacheDir ?? join(folder, 'cache')
  const log = rememberingLog()
  const workers = new Workers({ ioTimeoutMs: 30_000 }, options.workers)
  const store = await openStore(cacheDir, {
    bytesMax: 1e9,
    freeBytesMin: 0,
    log,
    hashFile: hashFileOn(workers),
    ...options,
  })
  const fetcher = new Fetcher({ store, workers, log })
  t.teardown(async () => {
    await fetcher.close()
    await workers.close()
  })
  return { fetcher, cacheDir, source: join(folder, 'source'), log, store }
}

async function readAndClose(object: ObjectHandle): Promise<Buffer> {
  const buffer = Buffer.alloc(object.size + 1)
  const bytes = readSync(object.fd, buffer, 0, buffer.length, 0)
  await object.close()
  return buffer.subarray(0, bytes)
}

/** An S3 server with one object under any key, and its own idea of how to answer. */
async function serve(t: Test, answer: Parameters<typeof createServer>[1]): Promise<{ requests: number }> {
  const seen = { requests: 0 }
  const server: Server = createServer((request, response) => {
    seen.requests++
    ;(answer as (a: unknown, b: unknown) => void)(request, response)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  process.env.AWS_ENDPOINT_URL = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return seen
}

async function inS3(t: Test, bytes: Uint8Array, type: (typeof HASH_TYPES)[number] = 'SHA256'): Promise<ObjectSpec> {
  const { size, hash } = await writeEntry(folderOf(t), 'in-s3', bytes, type)
  return { size, hash, physicalKey: { kind: 's3', bucket: 'bucket', key: 'object' } }
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let i = 0; i < 500; i++) {
    if (condition()) return
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  throw new Error(`never: ${what}`)
}

t.test('Fetcher.open fetches objects of every hash type and size, and the next time none', async t => {
  const { fetcher, source } = await fetching(t)
  for (const type of HASH_TYPES) {
    for (const size of [0, 1, 8 * MiB - 1, 8 * MiB, 8 * MiB + 1, 20 * MiB]) {
      const bytes = noise(size, size)
      const entry = await writeEntry(source, `${type}-${size}`, bytes, type)
      t.ok((await readAndClose(await fetcher.open(entry))).equals(bytes), entry.key)
      rmSync(join(source, entry.key))
      t.ok((await readAndClose(await fetcher.open(entry))).equals(bytes), `${entry.key} from the store`)
    }
  }
  t.match(fetcher.stats(), { objects: 18, hits: 18, refetches: 0, refused: 0, errors: 0, inFlight: 0, queued: 0 })
})

t.test('Fetcher.open gives the same in the calling thread', async t => {
  const { fetcher, source } = await fetching(t, { workers: { threads: 0 } })
  const entry = await writeEntry(source, 'x', noise(9 * MiB), 'sha2-256-chunked')
  t.ok((await readAndClose(await fetcher.open(entry))).equals(noise(9 * MiB)))
})

t.test('Fetcher.open fetches once for many callers', async t => {
  const bytes = noise(100_000)
  const seen = await serve(t, (_request, response) => {
    setTimeout(() => response.setHeader('content-length', bytes.length).end(bytes), 50)
  })
  const { fetcher, store } = await fetching(t)
  const spec = await inS3(t, bytes)
  const objects = await Promise.all(Array.from({ length: 50 }, () => fetcher.open(spec)))
  t.equal(seen.requests, 1)
  t.match(fetcher.stats(), { objects: 1, bytes: 100_000 })
  for (const object of objects) t.ok((await readAndClose(object)).equals(bytes))
  t.match(store.stats(), { pinnedObjects: 0, objects: 1 })
})

t.test('Fetcher.open goes on for the others when one caller gives up', async t => {
  const bytes = noise(1000)
  let finish = () => {}
  const seen = await serve(t, (_request, response) => {
    response.setHeader('content-length', bytes.length).write(bytes.subarray(0, 500))
    finish = () => response.end(bytes.subarray(500))
  })
  const { fetcher } = await fetching(t)
  const spec = await inS3(t, bytes)
  const controller = new AbortController()
  const one = fetcher.open(spec, { signal: controller.signal })
  const other = fetcher.open(spec)
  await until(() => seen.requests === 1, 'a fetch under way')
  controller.abort()
  await t.rejects(one, { code: 'INTERRUPTED' })
  await new Promise(resolve => setTimeout(resolve, 100))
  finish()
  t.ok((await readAndClose(await other)).equals(bytes))
})

t.test('Fetcher.open stops fetching when all callers have given up, and leaves nothing behind', async t => {
  let isClosed = false
  const seen = await serve(t, (_request, response) => {
    response.setHeader('content-length', 1000).write('x'.repeat(500))
    response.once('close', () => {
      isClosed = true
    })
  })
  const { fetcher, cacheDir, store } = await fetching(t)
  const spec = await inS3(t, Buffer.alloc(1000, 'x'))
  const controller = new AbortController()
  const callers = [1, 2].map(() => fetcher.open(spec, { signal: controller.signal }))
  await until(() => seen.requests === 1, 'a fetch under way')
  t.equal(readdirSync(join(cacheDir, 'tmp')).length, 1)
  controller.abort()
  for (const caller of callers) await t.rejects(caller, { code: 'INTERRUPTED' })
  await until(() => isClosed, 'the connection is closed')
  await until(() => fetcher.stats().inFlight === 0, 'the fetch has stopped')
  t.same(readdirSync(join(cacheDir, 'tmp')), [])
  t.match(store.stats(), { reservedBytes: 0, objects: 0 })
  t.match(fetcher.stats(), { errors: 0, refused: 0 })
})

t.test('Fetcher.open fetches a wrong object once more, and then has it', async t => {
  const bytes = noise(9 * MiB)
  for (const type of HASH_TYPES) {
    const flipped = Buffer.from(bytes)
    flipped[8_000_000]! ^= 1
    const sockets = new Set<unknown>()
    let isFirst = true
    await serve(t, (request, response) => {
      sockets.add(request.socket)
      const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '')
      const [start, end] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, bytes.length]
      const body = (isFirst ? flipped : bytes).subarray(start, end)
      if (start === 0) isFirst = false
      if (range) response.writeHead(206, { 'content-range': `bytes ${start}-${end - 1}/${bytes.length}` })
      response.end(body)
    })
    const { fetcher, log } = await fetching(t)
    const spec = await inS3(t, bytes, type)
    t.ok((await readAndClose(await fetcher.open(spec))).equals(bytes), type)
    t.match(fetcher.stats(), { objects: 1, refetches: 1, refused: 0 })
    t.ok(sockets.size >= 2, 'the second try has its own connection')
    const reported = log.lines.filter(({ level }) => level !== 'info')
    t.match(reported, [{ level: 'warn', message: /hashes to [0-9a-f]+, the manifest says/ }])
  }
})

t.test('Fetcher.open refuses an object that stays wrong, with both hashes in the log (S6)', async t => {
  const { fetcher, source, cacheDir, log, store } = await fetching(t)
  for (const type of HASH_TYPES) {
    const entry = await writeEntry(source, `wrong-${type}`, noise(9 * MiB), type)
    const bytes = readFileSync(join(source, entry.key))
    bytes[5]! ^= 1
    writeFileSync(join(source, entry.key), bytes)
    await t.rejects(fetcher.open(entry, { label: 'my/key' }), { code: 'OBJECT_CORRUPT', message: /^my\/key: file:/ })
    const refusal = log.lines.at(-1)!
    t.match(refusal, { level: 'error', fields: { key: 'my/key', expected: entry.hash.hex } })
    t.match(
      refusal.message,
      new RegExp(`hashes to (?!${entry.hash.hex})[0-9a-f]{16,64}, the manifest says ${entry.hash.hex}`),
    )
  }
  t.match(fetcher.stats(), { objects: 0, refetches: 3, refused: 3, errors: 0 })
  t.match(store.stats(), { objects: 0, bytes: 0, reservedBytes: 0 })
  t.same(readdirSync(join(cacheDir, 'tmp')), [])
})

for (const [what, change] of [
  ['shorter', -1],
  ['longer', 1],
  ['empty', -9 * MiB],
] as const) {
  t.test(`Fetcher.open refuses an object that is ${what} than the manifest says`, async t => {
    const { fetcher, source } = await fetching(t)
    for (const type of HASH_TYPES) {
      const entry = await writeEntry(source, type, noise(9 * MiB), type)
      truncateSync(join(source, type), 9 * MiB + change)
      await t.rejects(fetcher.open(entry), { code: 'OBJECT_CORRUPT', message: /bytes, the manifest says 9437184/ })
    }
    t.equal(fetcher.stats().refused, 3)
  })
}

t.test('Fetcher.open passes on what the source says, with the key', async t => {
  const { fetcher, source } = await fetching(t)
  for (const size of [10, 20 * MiB]) {
    const entry = await writeEntry(source, 'gone', noise(size), 'sha2-256-chunked')
    rmSync(join(source, 'gone'))
    await t.rejects(fetcher.open(entry, { label: 'a/gone' }), { code: 'OBJECT_GONE', message: /^a\/gone: .*gone/ })
  }
  t.match(fetcher.stats(), { errors: 2, refused: 0, refetches: 0 })
})

t.test('Fetcher.open tries the address of each caller', async t => {
  const { fetcher, source } = await fetching(t)
  const here = await writeEntry(source, 'here', 'the same bytes')
  const gone: ObjectSpec = { ...here, physicalKey: { kind: 'file', path: join(source, 'gone') } }
  const [first, second] = await Promise.allSettled([fetcher.open(gone), fetcher.open(here)])
  t.match(first, { status: 'rejected', reason: { code: 'OBJECT_GONE' } })
  t.equal(second.status, 'fulfilled')
  await (second as PromiseFulfilledResult<ObjectHandle>).value.close()
})

t.test('Fetcher.open fetches again what was changed in the cache', async t => {
  const { fetcher, source, log, store } = await fetching(t)
  const entry = await writeEntry(source, 'x', noise(20 * MiB), 'sha2-256-chunked')
  const object = await fetcher.open(entry)
  await object.close()
  await new Promise(resolve => setTimeout(resolve, 12))
  const bytes = readFileSync(object.path)
  bytes[12 * MiB]! ^= 1
  rmSync(object.path)
  writeFileSync(object.path, bytes)
  t.ok((await readAndClose(await fetcher.open(entry))).equals(noise(20 * MiB)))
  t.match(fetcher.stats(), { objects: 2, hits: 0 })
  t.equal(store.stats().refused, 1)
  t.match(log.lines.at(-1), { level: 'error', fields: { expected: entry.hash.hex }, message: /cached object/ })
})

t.test('Fetcher.open works within a quota smaller than what is read, many at a time', async t => {
  const { fetcher, source, store } = await fetching(t, { bytesMax: 1_000_000 })
  const entries = await Promise.all(
    Array.from({ length: 200 }, (_, i) => writeEntry(source, `${i}`, noise(20_000 + 100 * (i % 90), i))),
  )
  let most = 0
  await Promise.all(
    [...entries, ...entries].map(async (entry, i) => {
      await new Promise(resolve => setTimeout(resolve, i))
      const bytes = await readAndClose(await fetcher.open(entry))
      if (!bytes.equals(readFileSync(join(source, entry.key)))) t.fail(`wrong bytes of ${entry.key}`)
      const { bytes: held, reservedBytes } = store.stats()
      most = Math.max(most, held + reservedBytes)
    }),
  )
  t.ok(most <= 1_000_000, `at most ${most} bytes`)
  t.ok(store.stats().evictions > 100)
})

t.test('Fetcher.open says STORE_FULL on a full disk, keeps nothing half, and works when there is room', async t => {
  const disk = smallDisk(t, 16)
  if (disk === undefined) return
  for (const [type, size] of [
    ['SHA256', 6 * MiB],
    ['sha2-256-chunked', 10 * MiB],
  ] as const) {
    const cacheDir = join(disk, type)
    // Below zero: the store takes the disk for larger than it is, as when others fill it meanwhile.
    const { fetcher, source, store } = await fetching(t, { cacheDir, freeBytesMin: -1e9 })
    const filler = join(disk, 'filler')
    writeFileSync(filler, Buffer.alloc(12 * MiB))
    const entry = await writeEntry(source, 'x', noise(size), type)
    await t.rejects(fetcher.open(entry, { label: 'x' }), { code: 'STORE_FULL', message: /no space left/ })
    t.same(readdirSync(join(cacheDir, 'tmp')), [])
    t.match(store.stats(), { objects: 0, bytes: 0, reservedBytes: 0 })
    rmSync(filler)
    t.ok((await readAndClose(await fetcher.open(entry))).equals(noise(size)))
    await fetcher.close()
    rmSync(cacheDir, { recursive: true })
  }
})

t.test('Fetcher.open fetches while large objects are hashed again, on one thread (S92)', async t => {
  const cacheDir = join(folderOf(t), 'cache')
  const large = Array.from({ length: 8 }, (_, i): ObjectSpec => {
    const hash = { type: 'SHA256', hex: String(i).repeat(64) } as const
    return { physicalKey: { kind: 'file', path: '/nowhere' }, size: 4 * 2 ** 30, hash }
  })
  for (const spec of large) {
    const path = objectPath(cacheDir, objectId(spec))
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, '')
    truncateSync(path, spec.size)
  }
  const { fetcher, source } = await fetching(t, { cacheDir, bytesMax: 1e12, workers: { threads: 1 } })
  const controller = new AbortController()
  let settled = 0
  let hashed = 0
  const checks = large.map(spec =>
    fetcher
      .open(spec, { signal: controller.signal, onProgress: () => hashed++ })
      .catch(error => error.code as unknown)
      .finally(() => settled++),
  )
  await until(() => hashed > 0, 'they are hashed')
  const bytes = noise(3 * MiB, 92)
  const object = await fetcher.open(await writeEntry(source, 'small', bytes))
  t.equal(settled, 0, 'none of them has ended')
  t.ok((await readAndClose(object)).equals(bytes))
  controller.abort()
  t.same(new Set(await Promise.all(checks)), new Set(['INTERRUPTED']))
  t.equal(fetcher.stats().inFlight, 0)
})

t.test('Fetcher.open tells its callers of their own progress, and of that of others while they wait (S92)', async t => {
  const rest: ServerResponse[] = []
  await serve(t, (request, response) => {
    response.setHeader('content-length', 64 * MiB).write(noise(1000))
    if (request.url!.includes('dripping')) rest.push(response)
  })
  const { fetcher } = await fetching(t, { bytesMax: 1e12 })
  const told = new Map<string, number>()
  const open = (key: string, i: number) => {
    const spec: ObjectSpec = {
      physicalKey: { kind: 's3', bucket: 'bucket', key },
      size: 64 * MiB,
      hash: { type: 'SHA256', hex: i.toString(16).padStart(64, '0') },
    }
    const onProgress = () => told.set(key, (told.get(key) ?? 0) + 1)
    fetcher.open(spec, { onProgress }).catch(() => {})
  }
  open('dripping', 0)
  for (let i = 1; i < 32; i++) open(`stuck-${i}`, i)
  await until(() => fetcher.stats().inFlight === 32 && told.size === 32, 'all have their first bytes')
  open('waiting', 32)
  const stuck = () => [...told].filter(([key]) => key.startsWith('stuck')).map(([, times]) => times)
  const before = stuck()
  await until(() => {
    for (const response of rest) response.write(noise(1000))
    return (told.get('waiting') ?? 0) > 1
  }, 'the one that waits is told')
  t.ok(told.get('dripping')! > 1)
  t.same(stuck(), before, 'those that get no bytes are not')
  await fetcher.close()
})

t.test('Fetcher.close gives up what is under way and what waits', async t => {
  await serve(t, (_request, response) => {
    response.setHeader('content-length', 1000).write('x')
  })
  const { fetcher, cacheDir } = await fetching(t)
  const { size, hash } = await inS3(t, Buffer.alloc(1000, 'x'), 'CRC64NVME')
  const opens = Array.from({ length: 150 }, (_, i) =>
    fetcher.open({ size, hash, physicalKey: { kind: 's3', bucket: 'bucket', key: `${i}` } }),
  )
  const outcomes = Promise.allSettled(opens)
  await until(() => fetcher.stats().inFlight === 128, 'fetches under way')
  t.equal(fetcher.stats().queued, 22)
  await fetcher.close()
  for (const outcome of await outcomes) t.match(outcome, { status: 'rejected', reason: { code: 'INTERRUPTED' } })
  await t.rejects(fetcher.open({ size, hash, physicalKey: { kind: 'file', path: '/x' } }), { code: 'INTERRUPTED' })
  t.same(readdirSync(join(cacheDir, 'tmp')), [])
})

t.test('Workers.fetch gives errors of other threads back as BobbinErrors', async t => {
  const workers = new Workers({ ioTimeoutMs: 1000, offline: true })
  t.teardown(() => workers.close())
  const physicalKey = { kind: 's3', bucket: 'b', key: 'k' } as const
  const job = { kind: 'fetch', key: physicalKey, objectBytes: 1, hashType: 'SHA256', fd: -1, isFresh: false } as const
  const error = await workers.fetch(job).catch(e => e)
  t.ok(error instanceof BobbinError)
  t.match(error, { code: 'UPSTREAM_UNAVAILABLE', message: /^offline/ })
})

t.test('Workers.fetch reports how far it is, and never kills its threads on cancelling', async t => {
  const bytes = noise(3 * MiB)
  await serve(t, (_request, response) => {
    response.setHeader('content-length', bytes.length).write(bytes.subarray(0, 2 * MiB))
  })
  const workers = new Workers({ ioTimeoutMs: 30_000 }, { threads: 1 })
  t.teardown(() => workers.close())
  const folder = folderOf(t)
  const { openSync } = await import('node:fs')
  const fd = openSync(join(folder, 'file'), 'w+')
  const controller = new AbortController()
  let far = 0
  const job = {
    kind: 'fetch',
    key: { kind: 's3', bucket: 'bucket', key: 'k' },
    objectBytes: bytes.length,
    hashType: 'SHA256',
    fd,
    isFresh: false,
  } as const
  const fetch = workers.fetch(job, {
    signal: controller.signal,
    onBytes: bytes => {
      far = bytes
      if (bytes === 2 * MiB) controller.abort()
    },
  })
  await t.rejects(fetch, { code: 'INTERRUPTED' })
  t.equal(far, 2 * MiB)
  const hash = await workers.hash({ kind: 'hash', fd, range: { start: 0, length: 2 * MiB }, hashType: 'SHA256' })
  t.match(hash, /^[0-9a-f]{64}$/, 'the thread works on')
})

t.test('A store whose owner is killed in the middle of a fetch is sound afterwards (S17)', async t => {
  const folder = folderOf(t)
  const cacheDir = join(folder, 'cache')
  mkdirSync(cacheDir)
  await serve(t, (_request, response) => {
    response.setHeader('content-length', 1000).write('x'.repeat(700))
  })
  const endless = await inS3(t, Buffer.alloc(1000, 'x'))
  const complete = await Promise.all(
    Array.from({ length: 20 }, (_, i) => writeEntry(join(folder, 'source'), `${i}`, noise(5000, i))),
  )
  const script = fileURLToPath(new URL('../../../support/store-owner.js', import.meta.url))
  const child = spawn(process.execPath, [script, cacheDir, JSON.stringify({ complete, endless })], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const said = await new Promise(resolve => child.stdout.once('data', resolve))
  t.match(String(said), /in the middle/)
  t.equal(readdirSync(join(cacheDir, 'tmp')).length, 1)
  const exited = new Promise(resolve => child.once('exit', resolve))
  child.kill('SIGKILL')
  await exited
  const { fetcher, store } = await fetching(t, { cacheDir })
  t.same(readdirSync(join(cacheDir, 'tmp')), [])
  t.match(store.stats(), { objects: 20, bytes: 100_000 })
  for (const entry of complete) {
    rmSync(join(folder, 'source', entry.key))
    t.equal(store.stateOf(entry), 'checked')
    t.ok((await readAndClose(await fetcher.open(entry))).equals(noise(5000, Number(entry.key))))
  }
  t.equal(store.stateOf(endless), 'absent')
  t.notOk(existsSync(join(cacheDir, 'objects/v1/sha256', endless.hash.hex.slice(0, 2), endless.hash.hex)))
  t.ok(statSync(join(cacheDir, 'objects/v1/journal')).size > 0)
})
