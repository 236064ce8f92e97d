/**
 * Attacks on `bobbin loader` by whoever may open a socket of it and is not its user: it must not read for them what they
 * may not read, nor let them know what there is.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, realpathSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { Bobbin, runProgram } from '../support/cli.js'
import { type Answer, type PlanAnswer, type RunningLoader, startLoader, untar } from '../support/loader.js'
import { type FileContent, type WrittenPackage, writeRegistry } from '../support/registry.js'

t.setTimeout(300_000)

const SECRET = 'aws_secret_access_key = wJalrXUtnFEMI/K7MDENG\n'
const SECRET_HEX = createHash('sha256').update(SECRET).digest('hex')
const PATHS = { accept: 'application/vnd.bobbin.paths+ndjson' }
const STRANGER = 65_534

/** Short, for the sockets in it, and its own user's alone. */
const folder = realpathSync(mkdtempSync(join(tmpdir(), 'bobbin-access-')))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
const secretPath = join(folder, 'home/.aws/credentials')
mkdirSync(dirname(secretPath), { recursive: true })
writeFileSync(secretPath, SECRET)

const write = (registry: string, files: Record<string, FileContent | string>, name = 'cv/coco') =>
  writeRegistry(join(folder, registry), name, files)

const SHA = { hashType: 'SHA256' } as const
const elsewhere = { physicalKey: `file://${secretPath}`, ...SHA }
const served = await write('served', {
  'a.txt': { bytes: 'served', ...SHA },
  'b.real': { bytes: SECRET, ...elsewhere },
  'c.size': { bytes: 'x', ...elsewhere },
  'd.hash': { bytes: 'y'.repeat(SECRET.length), ...elsewhere },
  'e.none': { bytes: 'x', ...SHA, physicalKey: `file://${folder}/home/.aws/none` },
  'f.link': { bytes: SECRET, ...SHA },
  'g.fake': { bytes: 'right', ...SHA },
  'h.gone': { bytes: 'here', ...SHA },
})
replaceByLink('f.link', secretPath)
writeFileSync(served.paths.get('g.fake')!, 'wrong')
rmSync(served.paths.get('h.gone')!)
const BAD = ['b.real', 'c.size', 'd.hash', 'e.none', 'f.link', 'g.fake', 'h.gone']

const evil = await write('evil', {
  'right.txt': { bytes: SECRET, ...elsewhere },
  'size.txt': { bytes: 'x', ...elsewhere },
})

function replaceByLink(key: string, target: string): void {
  const path = served.paths.get(key)!
  rmSync(path, { force: true })
  symlinkSync(target, path)
}

const named = await startLoader(t, { args: ['--serve', served.reference] })
/** As the container of a run has it, or the group on the unit's socket: nothing but a socket that can be opened. */
const ask = (...words: Parameters<RunningLoader['ask']>) => named.ask(...words)

interface Problem {
  readonly status: number
  readonly code: string
  readonly detail: string
}

/** All that an answer says, but for the number of the line in the log and the date. */
function shapeOf({ status, headers, body }: Answer): string {
  const { date: _, ...kept } = headers
  return JSON.stringify([status, kept, body.toString('latin1')]).replace(/as [0-9a-f]{12}/g, 'as …')
}

function tellsNothing(t: Test, answer: Answer, what: string): void {
  const text = shapeOf(answer)
  for (const [name, secret] of Object.entries({
    bytes: 'wJalrXUtnFEMI',
    hash: SECRET_HEX,
    base64: Buffer.from(SECRET_HEX, 'hex').toString('base64'),
    path: 'credentials',
    found: ' bytes, the manifest says',
    home: `${folder}/home`,
  }))
    t.notOk(text.includes(secret), `${what}: no ${name}`)
}

/** One and the same answer for all of them. */
async function uniform(t: Test, what: string, asked: readonly Parameters<RunningLoader['ask']>[]): Promise<void> {
  const shapes = new Set<string>()
  for (const words of asked) {
    const answer = await ask(...words)
    t.equal(answer.status, 404, `${what}: ${words[0]}`)
    t.equal(answer.json<Problem>().code, 'NOT_SERVED')
    tellsNothing(t, answer, what)
    shapes.add(shapeOf(answer))
  }
  t.equal(shapes.size, 1, `${what}: one answer, not ${[...shapes].join('\n')}`)
}

t.test("a client's own registry is not read through a shared door (S60)", async t => {
  const strangers = (body: object) => ({ body: { package: evil.reference, batch: { global: 1 }, ...body } })
  const missing = `file://${folder}/none/cv/coco@${evil.topHash}`
  await uniform(t, 'plans', [
    ['/v1/plans', strangers({ select: ['right.txt'] })],
    ['/v1/plans', strangers({ select: ['size.txt'] })],
    ['/v1/plans', strangers({ package: missing })],
    ['/v1/plans', strangers({ package: `file://${folder}/evil/cv/coco` })],
    ['/v1/plans', strangers({ package: `file://${folder}/evil/cv/coco:1` })],
    ['/v1/plans', strangers({ package: `file://${folder}/home/cv/coco@${'0'.repeat(64)}` })],
    ['/v1/plans', strangers({ package: 's3://somebody-elses-bucket/cv/coco' })],
  ])
  await uniform(t, 'lists', [
    ['/v1/get', { body: { package: evil.reference, entries: [{ key: 'right.txt' }] } }],
    ['/v1/get', { body: { package: evil.reference, entries: [{ key: 'none' }] } }],
    ['/v1/get', { body: { package: missing, entries: [{ key: 'right.txt' }] } }],
  ])
  await uniform(t, 'single entries', [
    [`/v1/p/${evil.topHash}/right.txt`],
    [`/v1/p/${evil.topHash}/none`],
    [`/v1/p/${'0'.repeat(64)}/right.txt`],
  ])
  t.match(named.log, /evil/, 'the log says what was asked for')
})

t.test('rows and links that lead out of a served folder give nothing, and all the same nothing (S61)', async t => {
  const plan = (select: string, more: object = {}) =>
    named.plan<PlanAnswer & { bytesCached: unknown }>({
      package: served.reference,
      select: [select],
      batch: { global: 1 },
      ...more,
    })
  const plans = await Promise.all(BAD.map(key => plan(key)))
  for (const { bytesCached } of plans) t.equal(bytesCached, null, 'a plan does not say what is here')
  const strip = (key: string, answer: Answer) => shapeOf(answer).replaceAll(key, 'KEY')
  for (const headers of [PATHS, { accept: 'application/x-tar' }]) {
    const shapes = new Set<string>()
    for (const [i, { planId }] of plans.entries()) {
      const answer = await ask(`/v1/plans/${planId}/batches`, { headers })
      t.equal(answer.status, 404, BAD[i]!)
      tellsNothing(t, answer, `${BAD[i]} as ${headers.accept}`)
      shapes.add(strip(BAD[i]!, answer))
    }
    t.equal(shapes.size, 1, [...shapes].join('\n'))
    t.match([...shapes][0], /KEY: it is not served here/, 'the entry is named: the package is served')
  }
  const entries = new Set<string>()
  for (const key of BAD) {
    const answer = await ask(`/v1/p/${served.topHash}/${key}`)
    tellsNothing(t, answer, `${key} by its key`)
    entries.add(strip(key, answer))
    const list = await ask('/v1/get', { body: { topHash: served.topHash, entries: [{ key }], onMissing: 'mark' } })
    t.equal(list.status, 200)
    // The index has what the manifest says, the message in its place nothing else.
    const marked = untar(list.body).find(({ name }) => name.endsWith('.error.json'))!
    t.match(marked.content.toString(), /NOT_SERVED/)
    t.notMatch(marked.content.toString(), /credentials|wJalr|hashes to|bytes/)
  }
  t.equal(entries.size, 1, [...entries].join('\n'))
  const marking = await plan('*', { onMissing: 'mark', batch: { global: 8 } })
  const line = await ask(`/v1/plans/${marking.planId}/batches`, { headers: PATHS })
  t.equal(line.status, 200)
  const codes = [...line.body.toString().matchAll(/"error":\{"code":"(\w+)","detail":"([^"]+)"/g)]
  t.equal(codes.length, BAD.length)
  for (const [, code, detail] of codes) t.match(`${code} ${detail}`, /^NOT_SERVED .*it is not served here/)
  t.match(named.log, /credentials.*outside of what is served/, "the loader's log has the reasons")
  t.match(await ask(`/v1/p/${served.topHash}/a.txt`), { status: 200, body: Buffer.from('served') })
})

t.test(
  'an object is given by its hash for what a served package names, whatever else lies in the store (S61)',
  async t => {
    const hexOf = (text: string) => createHash('sha256').update(text).digest('hex')
    const other = await write('other', { 'a.txt': { bytes: 'in the store', ...SHA } })
    // The owner has it fetched, by a loader of theirs on the same cache.
    const own = await startLoader(t, { folder: dirname(named.cacheDir), args: ['--socket', join(folder, 'own.sock')] })
    const fetched = await askAt(join(folder, 'own.sock'), own, '/v1/get', {
      body: { package: other.reference, entries: [{ key: 'a.txt' }] },
    })
    t.equal(fetched.status, 200)
    t.equal((await askAt(join(folder, 'own.sock'), own, `/v1/o/${hexOf('in the store')}`)).status, 200)
    t.match(await ask(`/v1/o/${hexOf('served')}`), { status: 200, body: Buffer.from('served') })
    await uniform(t, 'objects', [
      [`/v1/o/${hexOf('in the store')}`],
      [`/v1/o/${hexOf('not in the store')}`],
      ['/v1/get', { body: { entries: [{ hash: hexOf('in the store') }] } }],
      ['/v1/get', { body: { entries: [{ hash: hexOf('not in the store') }] } }],
    ])
    const byHash = await ask(`/v1/o/${SECRET_HEX}`)
    t.match(byHash.json<Problem>(), { code: 'NOT_SERVED' }, 'also where a row names it')
    t.notOk(byHash.body.includes('credentials'))
  },
)

/** The same client on another socket. */
function askAt(socket: string, loader: RunningLoader, ...words: Parameters<RunningLoader['ask']>): Promise<Answer> {
  return Object.create(loader, { socket: { value: socket } }).ask(...words)
}

t.test('a link that is exchanged all the time never leads out', async t => {
  const keys = Array.from({ length: 60 }, (_, i) => `${i}.txt`)
  const raced = await write('raced', Object.fromEntries(keys.map(key => [key, { bytes: `inside ${key}`, ...SHA }])))
  const loader = await startLoader(t, { args: ['--allow', `file://${folder}/raced`] })
  // Whoever may write in the folder: the manifest already names the secret's hash, which is as much as can be known.
  const stolen = await write(
    'raced',
    Object.fromEntries(keys.map(key => [`s${key}`, { bytes: `${SECRET}${key}`, ...SHA }])),
  )
  let isOver = false
  const outside = keys.map(key => {
    const path = join(folder, `home/s${key}`)
    writeFileSync(path, `${SECRET}${key}`)
    return path
  })
  const exchange = async () => {
    for (let round = 0; !isOver; round++) {
      for (const [i, key] of keys.entries()) {
        const path = stolen.paths.get(`s${key}`)!
        symlinkSync(round % 2 === 0 ? outside[i]! : raced.paths.get(key)!, `${path}.new`)
        renameSync(`${path}.new`, path)
      }
      await new Promise(resolve => setImmediate(resolve))
    }
  }
  const exchanging = exchange()
  const answers: Answer[] = []
  for (const key of keys) answers.push(await loader.ask('/v1/get', { body: listOf(stolen, `s${key}`) }))
  isOver = true
  await exchanging
  for (const answer of answers) {
    t.equal(answer.status, 404)
    t.notOk(answer.body.includes('wJalr'))
  }
  t.equal((await loader.ask('/v1/get', { body: listOf(raced, '0.txt') })).status, 200)
})

function listOf(written: WrittenPackage, key: string): object {
  return { package: written.reference, entries: [{ key }] }
}

t.test("another client does not move somebody's plan to another registry (S64)", async t => {
  const [first, second] = await Promise.all(
    ['first', 'second'].map(name => write(name, { 'a.txt': 'aaa', 'b.txt': 'bbb' })),
  )
  const loaders = [
    await startLoader(t),
    await startLoader(t, { args: ['--allow', `file://${folder}/first`, '--allow', `file://${folder}/second`] }),
  ]
  for (const loader of loaders) {
    const wish = { batch: { global: 1 } }
    const plan = await loader.plan({ ...wish, package: first!.reference })
    t.equal((await loader.plan({ ...wish, package: second!.reference })).planId, plan.planId)
    const facts = (await loader.ask(`/v1/plans/${plan.planId}`)).json<{ package: string }>()
    t.equal(facts.package, first!.reference, 'it is read from where it was made of')
  }
  // What its own place does not have is had from the other one: to add a place is what a second registry is posted for.
  const [loader] = loaders
  const gone = await loader!.plan({ batch: { global: 2 }, package: first!.reference })
  rmSync(first!.paths.get('a.txt')!)
  rmSync(first!.paths.get('b.txt')!)
  t.equal((await loader!.ask(`/v1/plans/${gone.planId}/batches`)).status, 404)
  await loader!.plan({ batch: { global: 2 }, package: second!.reference })
  t.equal((await loader!.ask(`/v1/plans/${gone.planId}/batches`)).status, 200)
})

t.test('plans of one cache are known at each door as far as it serves them', async t => {
  const [mine, yours] = await Promise.all(['mine', 'yours'].map(name => write(name, { 'a.txt': 'same' })))
  const one = await startLoader(t, { args: ['--serve', mine!.reference] })
  const plan = await one.plan({ batch: { global: 1 }, package: mine!.reference })
  await one.end()
  const other = { folder: dirname(one.cacheDir), args: ['--serve', yours!.reference] }
  const two = await startLoader(t, other)
  t.equal((await two.ask(`/v1/plans/${plan.planId}`)).status, 404)
  // Nor are the other digits of its id told to who knows the first ones.
  const shard = await two.ask(`/wds/q${mine!.topHash.slice(0, 16)}-p${plan.planId.slice(0, 16)}-e0-w1r0-000000.tar`)
  t.equal(shard.status, 404)
  t.notMatch(shard.body.toString(), plan.planId)
  t.equal((await two.plan({ batch: { global: 1 }, package: yours!.reference })).planId, plan.planId)
  t.match((await two.ask(`/v1/plans/${plan.planId}`)).json(), { package: yours!.reference })
})

t.test('the user of a loader has everything, on a socket that nobody else may open (S60)', async t => {
  const own = await startLoader(t)
  t.equal(statSync(own.socket).mode & 0o777, 0o600)
  t.equal(statSync(dirname(own.socket)).mode & 0o777, 0o700)
  const list = await own.ask('/v1/get', { body: { package: evil.reference, entries: [{ key: 'right.txt' }] } })
  t.equal(list.status, 200)
  const told = await own.ask('/v1/get', { body: { package: evil.reference, entries: [{ key: 'size.txt' }] } })
  t.match(told.json<Problem>(), { code: 'OBJECT_CORRUPT', detail: /credentials has \d+ bytes/ })
  const skip = process.getuid?.() === 0 ? false : 'only root can be somebody else'
  await t.test('another user cannot open it', { skip }, async t => {
    const script = `require('node:net').connect(process.argv[1]).on('error', e => console.log(e.code)).on('connect', () => process.exit(1))`
    const args = [
      `--reuid=${STRANGER}`,
      `--regid=${STRANGER}`,
      '--clear-groups',
      process.execPath,
      '-e',
      script,
      own.socket,
    ]
    const { NODE_OPTIONS: _, ...env } = process.env
    t.match(await runProgram('setpriv', args, { env }), { status: 0, stdout: /EACCES/ })
  })
})

t.test('a socket that others could open, or exchange, is refused until it is said what they may have', async t => {
  const cli = new Bobbin(join(folder, 'refused'), { BOBBIN_LOADER_TOKEN: 'x'.repeat(32) })
  const start = (...args: string[]) => cli.try('loader', ...args)
  t.match(await start('--listen', '127.0.0.1:0'), { status: 2, stderr: /--serve PKG.*--allow REGISTRY/ })
  const open = join(folder, 'open')
  mkdirSync(open)
  t.match(await runProgram('chmod', ['777', open]), { status: 0 })
  t.match(await start('--socket', join(open, 'l.sock')), { status: 12, stderr: /not for this user alone/ })
  t.match(await start('--serve', 'not a package'), { status: 2, stderr: /not a package|no registry/ })
  t.match(await start('--allow', 'not a registry'), { status: 2, stderr: /not a registry/ })
})
