/** The end of a run, without a mount: its access log is written here, and its record made from it. */
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { readLedger } from '../../../../cli/record/ledger.js'
import type { LedgerRow } from '../../../../cli/record/ledger-row.js'
import type { RunFacts } from '../../../../cli/record/run-facts.js'
import { RunFolder } from '../../../../cli/record/run-folder.js'
import { verifyRecord } from '../../../../cli/record/verify.js'
import { finishRun } from '../../../../cli/run/finish.js'
import { parsePackageName, type TopHash } from '../../../../daemon/model/index.js'
import { AccessLog } from '../../../../daemon/mount/access-log.js'
import { AccessLogRoom, NEEDS_ACCESS_LOGS } from '../../../../daemon/mount/access-logs.js'
import { openPackage } from '../../../../daemon/package/package-cache.js'
import { parseRegistry } from '../../../../daemon/registry/reference.js'
import { createSource } from '../../../../daemon/source/index.js'
import { Bobbin, runProgram } from '../../../support/cli.js'
import { cuttableDisk } from '../../../support/power-cut.js'
import { writeRegistry } from '../../../support/registry.js'

const MOUNTED_AT = Date.UTC(2026, 0, 1)
const source = createSource({ ioTimeoutMs: 30_000, offline: false })
t.teardown(() => source.close())

/** A run on a package of three entries, two of which it has opened. */
async function ranOn(t: Test, stateFolder?: string) {
  const folder = t.testdir()
  const registry = `file://${join(folder, 'registry')}`
  const { topHash } = await writeRegistry(join(folder, 'registry'), 'a/b', {
    one: { bytes: 'one' },
    'two/three': { bytes: 'three' },
    unread: { bytes: 'unread' },
  })
  const cacheDir = join(folder, 'cache')
  const reference = { registry: parseRegistry(registry), name: parsePackageName('a/b') }
  const options = { cacheDir, source, offline: false, quarantine: false }
  const opened = await openPackage({ ...reference, revision: { kind: 'hash', prefix: topHash } }, options)
  t.teardown(() => opened.close())
  const run = RunFolder.create(stateFolder ?? join(folder, 'state'))
  writeFileSync(run.file(NEEDS_ACCESS_LOGS), '')
  const mountOf = (mountpoint: string, mountedAt: number) => ({
    version: 1 as const,
    registry,
    package: 'a/b',
    topHash: topHash as TopHash,
    mountpoint,
    mountedAt,
  })
  const room = new AccessLogRoom(cacheDir)
  const log = new AccessLog(cacheDir, 1, { ...mountOf('/mnt/run', MOUNTED_AT), run: run.path }, room)
  log.append(0, opens(...['two/three', 'one', 'one'].map(key => opened.index.find(key)!.ino)))
  log.close()
  const { manifestSha256, entries, bytes } = opened.index.facts
  const facts: RunFacts = {
    version: 1,
    runId: run.runId,
    bobbin: '0',
    pid: process.pid,
    host: hostname(),
    engine: { name: 'host', version: '0' },
    command: ['train'],
    env: {},
    options: [],
    mounts: [
      {
        ...{ asked: 'a/b', registry, package: 'a/b', topHash, manifestSha256, entries, bytes, cacheDir },
        ...{ mountpoint: '/mnt/run', target: '/data', mountedAt: new Date(MOUNTED_AT).toISOString() },
      },
    ],
    loaderSocket: null,
    startedOn: new Date(MOUNTED_AT).toISOString(),
    finishedOn: new Date(MOUNTED_AT + 1).toISOString(),
    exitCode: 0,
    areLogsWhole: true,
  }
  const finish = () => finishRun(run, facts, { cacheDir, source })
  const verify = () => verifyRecord(run, { publicKey: undefined, packages: { ...options, offline: true } })
  /** A mount that somebody else made later, and has ended; `run` is the folder of its run. */
  const mountLater = (number: number, other: { readonly run?: string } = {}) => {
    const later = new AccessLog(cacheDir, number, { ...mountOf(`/mnt/${number}`, MOUNTED_AT + number), ...other }, room)
    later.append(0, opens(2))
    later.close()
    return later.path
  }
  return { run, log, cacheDir, folder, finish, verify, mountLater }
}

function opens(...inos: readonly number[]): Buffer {
  const records = Buffer.alloc(24 * inos.length)
  for (const [i, ino] of inos.entries()) {
    records.writeBigUInt64LE(BigInt(MOUNTED_AT + i) * 1_000_000n, 24 * i)
    records.writeUInt32LE(ino, 24 * i + 8)
    records.writeUInt32LE(1, 24 * i + 12)
  }
  return records
}

async function rowsOf(run: RunFolder): Promise<LedgerRow[]> {
  const rows: LedgerRow[] = []
  for await (const row of readLedger(run.file('reads.jsonl'))) rows.push(row)
  return rows
}

t.test('150 later mounts take nothing from the record of a run that is under way (S87)', async t => {
  const { run, log, cacheDir, finish, verify, mountLater } = await ranOn(t)
  for (let i = 2; i < 152; i++) mountLater(i)
  t.ok(existsSync(log.path))
  const facts = await finish()
  t.equal(facts.areLogsWhole, true)
  t.match(await rowsOf(run), [
    { key: 'one', count: 2, via: 'fuse' },
    { key: 'two/three', count: 1, via: 'fuse' },
  ])
  t.match(await verify(), { problems: [], remarks: [/not signed/], reads: 2 })
  mountLater(152)
  t.notOk(existsSync(log.path), 'once the record is made, it is as old as it is')
  t.equal(readdirSync(join(cacheDir, 'access')).length, 101)
})

t.test('a log of a run whose folder is gone is kept no longer than another', async t => {
  const { run, log, folder, mountLater } = await ranOn(t)
  const elsewhere = mountLater(2, { run: join(folder, 'not mounted', 'runs', run.runId) })
  for (let i = 3; i < 110; i++) mountLater(i)
  t.ok(existsSync(log.path))
  rmSync(run.path, { recursive: true })
  mountLater(110)
  t.notOk(existsSync(log.path))
  t.ok(existsSync(elsewhere), 'where the folder of all runs cannot be seen, it is not known to be gone')
  const longAgo = Date.now() / 1000 - 31 * 24 * 60 * 60
  utimesSync(elsewhere, longAgo, longAgo)
  mountLater(111)
  t.notOk(existsSync(elsewhere), 'nobody has seen it for 30 days')
})

t.test('logs of a hundred mounts that are large together are fewer', async t => {
  const { log, mountLater } = await ranOn(t)
  const large = mountLater(2)
  // A hole: it takes no room here, and counts as what it may take.
  writeFileSync(large, '')
  truncateSync(large, 2 ** 30 + 1)
  mountLater(3)
  t.notOk(existsSync(large))
  t.ok(existsSync(log.path), 'the record of its run is not made yet')
})

t.test('damaged records of accesses are counted as lost, and the record is made', async t => {
  const { run, log, finish, verify } = await ranOn(t)
  appendFileSync(log.path, Buffer.concat([opens(1_000_000), Buffer.alloc(24, 0xff)]))
  const facts = await finish()
  t.equal(facts.areLogsWhole, false)
  t.equal((await rowsOf(run)).length, 2)
  t.match(await verify(), { problems: [], reads: 2 })
})

t.test(
  'a run.json and a finished record outlive a power cut (S85)',
  { skip: process.getuid?.() === 0 ? false : 'needs root' },
  async t => {
    const disk = cuttableDisk(t, 32)
    if (disk === undefined) return
    const state = join(disk.path, 'some', 'state')
    const { run, finish, verify } = await ranOn(t, state)
    writeFileSync(run.file('stdout.log'), 'said')
    const begun = RunFolder.create(state)
    begun.write({ ...(await finish()), runId: begun.runId })
    mkdirSync(join(disk.path, 'nobody waited for the disk'))
    disk.cut()
    t.notOk(existsSync(join(disk.path, 'nobody waited for the disk')), 'the power was really cut')
    t.equal(begun.read().runId, begun.runId)
    t.match(await verify(), { problems: [], remarks: [/not signed/], reads: 2 })
  },
)

t.test('runs that are broken are listed as such, with the reason, beside the others', async t => {
  const { run, folder, finish } = await ranOn(t)
  const state = join(folder, 'state')
  const { finishedOn: _, exitCode: __, ...begun } = await finish()
  const damaged = RunFolder.create(state)
  writeFileSync(damaged.file('run.json'), '{"version":')
  // Its process is gone, and its ledger cannot be written.
  const abandoned = RunFolder.create(state)
  abandoned.write({ ...begun, runId: abandoned.runId, pid: 2 ** 22 + 1 })
  mkdirSync(abandoned.file('reads.jsonl'))
  const bobbin = new Bobbin(join(folder, 'cache'), { BOBBIN_STATE: state })
  const listed = await bobbin.try('runs')
  t.equal(listed.status, 0, listed.stderr)
  const lines = listed.stdout.trimEnd().split('\n').slice(1)
  t.equal(lines.length, 3)
  t.match(lines[0], new RegExp(`^${run.runId} .*exit 0`))
  t.match(lines[1], new RegExp(`^${damaged.runId} .*broken !`))
  t.match(lines[2], new RegExp(`^${abandoned.runId} .*broken !.*train`))
  t.match(listed.stderr, `${damaged.path}: ${damaged.file('run.json')} is missing or damaged`)
  t.match(listed.stderr, new RegExp(`${abandoned.path}: cannot write .*reads.jsonl`))
  const rows = (await bobbin.text('runs', '--json'))
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as object)
  t.match(rows, [
    { runId: run.runId, state: 'exit 0' },
    { runId: damaged.runId, state: 'broken', why: /damaged/ },
    { runId: abandoned.runId, state: 'broken', why: /reads.jsonl/, command: ['train'] },
  ])
})

/** The record of a run, to be tampered with again and again, as somebody else may send it. */
async function sentRecords(t: Test) {
  const { run, folder, cacheDir, finish } = await ranOn(t)
  await finish()
  writeFileSync(run.file('run.intoto.jsonl'), '{}\n{}\n')
  let count = 0
  const send = () => {
    const sent = join(folder, `sent${count++}`)
    cpSync(run.path, sent, { recursive: true })
    return sent
  }
  return { folder, send, bobbin: new Bobbin(cacheDir, { BOBBIN_STATE: join(folder, 'others') }) }
}

t.test('pipes, devices and links in the place of files of a record are said, and nothing is read of them', async t => {
  const { folder, send, bobbin } = await sentRecords(t)
  const secret = join(folder, 'secret')
  writeFileSync(secret, 'secret')
  const kinds = {
    pipe: async (path: string) => void (await runProgram('mkfifo', [path])),
    device: async (path: string) => symlinkSync('/dev/zero', path),
    link: async (path: string) => symlinkSync(secret, path),
  }
  for (const name of ['run.json', 'statement.json', 'trace.json', 'reads.jsonl', 'run.intoto.jsonl'])
    for (const [kind, make] of Object.entries(kinds)) {
      const sent = send()
      rmSync(join(sent, name))
      await make(join(sent, name))
      const verified = await bobbin.try('record', 'verify', sent)
      // Without a key the envelopes are not opened.
      if (name === 'run.intoto.jsonl') t.equal(verified.status, 0, `${name}: ${kind}`)
      else t.match(verified, { status: 13, stderr: name }, `${name}: ${kind}`)
    }
})

t.test('record push gives nothing away that a link of the record leads to', async t => {
  const { folder, send, bobbin } = await sentRecords(t)
  const sent = send()
  const outputs = join(folder, 'outputs')
  mkdirSync(outputs)
  const facts = JSON.parse(readFileSync(join(sent, 'run.json'), 'utf8')) as RunFacts
  writeFileSync(join(sent, 'run.json'), JSON.stringify({ ...facts, outputDir: outputs, outputs: [] }))
  writeFileSync(join(folder, 'secret'), 'secret')
  symlinkSync(join(folder, 'secret'), join(sent, 'stdout.log'))
  const pushed = await bobbin.try('record', 'push', sent, join(folder, 'pushed', 'a', 'b'))
  t.match(pushed, { status: 13, stderr: /stdout.log is a link/ })
  t.notOk(existsSync(join(folder, 'pushed')), 'nothing is there')
})

t.test('whatever shape a record has, it is verified or refused, and nothing is called a bug of ours', async t => {
  const { send, bobbin } = await sentRecords(t)
  const deep = `${'['.repeat(200_000)}${']'.repeat(200_000)}`
  const row = { package: 'a/b', topHash: 'a'.repeat(64), key: '\ud800', hashType: 'SHA256', hash: 'aa', size: 1 }
  const shapes: Record<string, (sent: string) => [name: string, text: string]> = {
    'byproducts that are none': () => ['statement.json', '{"predicate":{"runDetails":{"byproducts":[null,5]}}}'],
    'dependencies that are no list': () => [
      'statement.json',
      '{"predicate":{"buildDefinition":{"resolvedDependencies":{"a":1}},"runDetails":null}}',
    ],
    'a deep statement': () => ['statement.json', `{"predicate":{"x":${deep}}}`],
    'a deep trace': () => ['trace.json', deep],
    'half a character in the ledger': () => [
      'reads.jsonl',
      `${JSON.stringify({ ...row, via: 'fuse', count: 1, aborted: 0, first: 'x' })}\n`,
    ],
    'half a character in the code': sent => {
      const facts = JSON.parse(readFileSync(join(sent, 'run.json'), 'utf8')) as RunFacts
      const hash = 'a'.repeat(40)
      const code = {
        folder: '/\ud800',
        commit: hash,
        tree: hash,
        ref: null,
        remote: null,
        isDirty: false,
        untracked: 0,
      }
      return ['run.json', JSON.stringify({ ...facts, code: { ...code, diffSha256: null } })]
    },
    'a time that is none': sent => [
      'run.json',
      readFileSync(join(sent, 'run.json'), 'utf8').replace(
        /"startedOn": "[^"]*"/,
        '"startedOn": "9999-99-99T99:99:99Z"',
      ),
    ],
    'a deep field that is none of ours': sent => [
      'run.json',
      readFileSync(join(sent, 'run.json'), 'utf8').replace('{', () => `{"more":${deep},`),
    ],
    'a host above others': sent => [
      'run.json',
      readFileSync(join(sent, 'run.json'), 'utf8').replace(/"host": "[^"]*"/, '"host": "../../x"'),
    ],
  }
  for (const [what, shape] of Object.entries(shapes)) {
    const sent = send()
    const [name, text] = shape(sent)
    writeFileSync(join(sent, name), text)
    const verified = await bobbin.try('record', 'verify', sent)
    t.equal(verified.status, 13, `${what}: ${verified.stderr}`)
  }
})
