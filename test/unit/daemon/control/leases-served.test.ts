/** What the daemon leases to a caller who is not its owner, and what it lets such a caller know. */
import { createHash } from 'node:crypto'
import { mkdirSync, realpathSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Leases } from '../../../../daemon/control/leases.js'
import type { LeaseBody } from '../../../../daemon/control/schema.js'
import { ServedMounts } from '../../../../daemon/control/served-mounts.js'
import { Fetcher } from '../../../../daemon/fetch/fetcher.js'
import { BobbinError } from '../../../../daemon/model/index.js'
import type { Served } from '../../../../daemon/registry/served.js'
import { createSource } from '../../../../daemon/source/index.js'
import { openStore } from '../../../../daemon/store/index.js'
import { hashFileOn } from '../../../../daemon/work/hash-object.js'
import { Workers } from '../../../../daemon/work/workers.js'
import { rememberingLog } from '../../../support/objects.js'
import { type FileContent, type WrittenPackage, writeRegistry } from '../../../support/registry.js'

const SECRET = 'aws_secret_access_key = wJalrXUtnFEMI\n'
const SIGNAL = new AbortController().signal
/** The root is 1, the folder's files follow. */
const FIRST = 2

async function leasing(t: Test) {
  const folder = realpathSync(t.testdir({ home: { '.aws': { credentials: SECRET } }, cache: {} }))
  const log = rememberingLog()
  const config = { ioTimeoutMs: 30_000, offline: false }
  const workers = new Workers(config, { threads: 1 })
  const cacheDir = join(folder, 'cache')
  const store = await openStore(cacheDir, { bytesMax: 1e9, freeBytesMin: 0, log, hashFile: hashFileOn(workers) })
  const fetcher = new Fetcher({ store, workers, log })
  const source = createSource(config)
  const leases = new Leases({ cacheDir, source, isOffline: () => false, fetcher, store, workers, log })
  t.teardown(async () => {
    leases.close()
    await fetcher.close()
    await workers.close()
    source.close()
  })
  const secretPath = join(folder, 'home/.aws/credentials')
  const write = (name: string, files: Record<string, FileContent | string>) =>
    writeRegistry(join(folder, name), 'cv/coco', files)
  return { leases, log, folder, secretPath, write, store }
}

function bodyOf({ registry, name, topHash }: WrittenPackage, more: Partial<LeaseBody> = {}): LeaseBody {
  return { owner: 'me', lease: 'l', registry, package: name, topHash, inos: [FIRST], priority: 'demand', ...more }
}

function servedOf({ registry, name, topHash }: WrittenPackage): Served {
  return new ServedMounts(() => [{ registry, package: name, topHash }], []).now
}

/** All that came back, as text. */
async function answerTo(run: () => Promise<unknown>): Promise<string> {
  return run().then(
    answer => JSON.stringify(answer),
    (error: unknown) => {
      if (error instanceof BobbinError) return `${error.code} ${error.message}`
      throw error
    },
  )
}

/** The same error but for its number? */
function shapeOf(answer: string): string {
  return answer.replace(/as [0-9a-f]{12}/g, 'as …')
}

const UNIFORM = /NOT_SERVED.*it is not served here, is not there, or failed its check: the daemon's log has .* as /s

t.test('what the daemon has mounted is leased to its group, and a registry that it was allowed', async t => {
  const { leases, write } = await leasing(t)
  const written = await write('registry', { 'a.txt': 'aaa' })
  const { registry, name, topHash } = written
  t.same(await leases.lease(bodyOf(written), SIGNAL, servedOf(written)), { failed: [] })
  t.same(await leases.lease(bodyOf(written), SIGNAL, new ServedMounts(() => [], [registry]).now), { failed: [] })
  const mounts = [{ registry, package: name, topHash }]
  const now = new ServedMounts(() => mounts, [])
  t.ok(now.now.admits(mounts[0]!))
  t.equal(now.now, now.now, 'and it is not made anew for each call')
  const gone = mounts.pop()!
  t.notOk(now.now.admits(gone), 'until it is unmounted')
})

t.test("a caller's own registry is not read, whatever its rows name (S60)", async t => {
  const { leases, log, write, secretPath, folder } = await leasing(t)
  const mounted = await write('registry', { 'a.txt': 'aaa' })
  const right = await write('evil', { 'a.txt': { bytes: SECRET, physicalKey: `file://${secretPath}` } })
  const missing = { ...right, registry: `file://${folder}/nothing`, topHash: 'f'.repeat(64) }
  const answers = new Set<string>()
  for (const body of [bodyOf(right), bodyOf(missing), bodyOf({ ...right, topHash: '0'.repeat(64) })]) {
    const answer = await answerTo(() => leases.lease(body, SIGNAL, servedOf(mounted)))
    t.match(answer, /NOT_SERVED/)
    answers.add(shapeOf(answer))
  }
  t.equal(answers.size, 1, `one answer, not ${[...answers].join(' | ')}`)
  t.notMatch(JSON.stringify(log.lines), /hashes to|has 38 bytes/, 'nothing of it was read')
  t.match(JSON.stringify(log.lines), /evil/, 'but the log says what was asked for')
})

t.test('rows and links that lead out of a served folder are refused, and nothing found is told (S61)', async t => {
  const { leases, log, write, secretPath, folder } = await leasing(t)
  const elsewhere = { bytes: 'x', physicalKey: `file://${secretPath}` }
  const written = await write('registry', {
    'a-inside': 'fine',
    'b-size': elsewhere,
    'c-hash': { ...elsewhere, bytes: 'y'.repeat(SECRET.length) },
    'd-right': { ...elsewhere, bytes: SECRET },
    'e-missing': { bytes: 'x', physicalKey: `file://${folder}/home/.aws/none` },
    'f-dots': { bytes: SECRET, physicalKey: `file://${folder}/registry/../home/.aws/credentials` },
    'g-link': SECRET,
    'h-folder/link': SECRET,
    'i-wrong': 'right',
    'j-gone': 'here',
  })
  const inRegistry = (key: string) => written.paths.get(key)!
  rmSync(inRegistry('g-link'))
  symlinkSync(secretPath, inRegistry('g-link'))
  rmSync(join(folder, 'registry/cv/coco/h-folder'), { recursive: true })
  mkdirSync(join(folder, 'home/linked'))
  writeFileSync(join(folder, 'home/linked/link'), SECRET)
  symlinkSync(join(folder, 'home/linked'), join(folder, 'registry/cv/coco/h-folder'))
  writeFileSync(inRegistry('i-wrong'), 'wrong')
  rmSync(inRegistry('j-gone'))
  const inos = Array.from({ length: 11 }, (_, i) => FIRST + i)
  for (const served of [servedOf(written), new ServedMounts(() => [], [written.registry]).now]) {
    const { failed } = await leases.lease(bodyOf(written, { inos }), SIGNAL, served)
    // Directories come among the files: whatever they are, only the file inside is leased.
    t.equal(failed.length, inos.length - 1)
    const told = new Set(failed.map(({ code, detail }) => shapeOf(`${code} ${detail}`)))
    t.equal(told.size, 1, `one answer, not ${[...told].join(' | ')}`)
    t.match([...told][0], UNIFORM)
  }
  const sha256 = createHash('sha256').update(SECRET).digest('hex')
  const logged = JSON.stringify(log.lines)
  t.match(logged, /credentials/, 'the log says what it was')
  t.notMatch(logged, new RegExp(`hashes to ${sha256}`), 'and even there no secret was read')
})

t.test('a manifest that is a link out of a served folder is not read', async t => {
  const { leases, write, folder } = await leasing(t)
  const written = await write('registry', { 'a.txt': 'aaa' })
  const elsewhere = join(folder, 'home/manifest')
  renameSync(written.manifestPath, elsewhere)
  symlinkSync(elsewhere, written.manifestPath)
  t.match(await answerTo(() => leases.lease(bodyOf(written), SIGNAL, servedOf(written))), UNIFORM)
  t.same(await leases.lease(bodyOf(written), SIGNAL), { failed: [] }, 'the owner has it')
})

t.test('the owner is told everything, and reads what rows name', async t => {
  const { leases, write, secretPath } = await leasing(t)
  const written = await write('registry', {
    'a.txt': { bytes: SECRET, physicalKey: `file://${secretPath}` },
    'b.txt': { bytes: 'x', physicalKey: `file://${secretPath}` },
  })
  const { failed } = await leases.lease(bodyOf(written, { inos: [FIRST, FIRST + 1] }), SIGNAL)
  t.match(failed, [{ ino: FIRST + 1, code: 'OBJECT_CORRUPT', detail: /credentials has 38 bytes/ }])
  t.equal(failed.length, 1)
})

t.test('an owner who asks for less gets less, also of what the store has already', async t => {
  const { leases, write, secretPath, folder } = await leasing(t)
  const written = await write('registry', { 'a.txt': { bytes: SECRET, physicalKey: `file://${secretPath}` } })
  t.same(await leases.lease(bodyOf(written), SIGNAL), { failed: [] })
  const places = { folders: [join(folder, 'registry')], buckets: [] }
  t.match(await leases.lease(bodyOf(written, { places }), SIGNAL), { failed: [{ code: 'ACCESS_DENIED' }] })
})

t.test('objects by hash are found for the owner alone (S61)', async t => {
  const { leases, write, store } = await leasing(t)
  const written = await write('registry', { 'a.txt': { bytes: 'aaa', hashType: 'SHA256' } })
  await leases.lease(bodyOf(written), SIGNAL)
  const here = `sha256/${createHash('sha256').update('aaa').digest('hex')}`
  t.equal(store.stats().objects, 1)
  const find = (id: string, served?: Served) =>
    answerTo(() => leases.find({ owner: 'me', lease: 'f', ids: [id] }, SIGNAL, served))
  t.match(await find(here), /"size":3/)
  const [there, not] = [await find(here, servedOf(written)), await find(`sha256/${'0'.repeat(64)}`, servedOf(written))]
  t.match(there, UNIFORM)
  t.equal(there, not, 'whether it is here or not')
})
