/** `bobbin run --host`, its record, and `bobbin reproduce`: real mounts, real git, real processes. */
import { createHash } from 'node:crypto'
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { RunFacts } from '../../cli/record/run-facts.js'
import { AS_USERS_DO, runProgram } from '../support/cli.js'
import { mountsBelow, testFolder, until } from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { bobbinPath } from '../support/parts.js'
import { processesWith } from '../support/processes.js'
import { writeRegistry } from '../support/registry.js'
import {
  ALLOW_CODE,
  ALLOW_HOST,
  exitOf,
  factsOf,
  type RunAnswer,
  Runs,
  readsOf,
  started,
  statementOf,
} from '../support/runs.js'
import { writeSamples } from '../support/samples.js'
import { endUnlessMounts } from '../support/skips.js'

t.setTimeout(600_000)
endUnlessMounts(t)

/** Reads what is named in its arguments, and writes down what that was. */
const TRAIN = `
import hashlib, os, sys
digest = hashlib.sha256()
for path in sys.argv[1:]:
    digest.update(open(path, 'rb').read())
out = os.environ.get('BOBBIN_OUTPUT')
if out:
    open(os.path.join(out, 'model'), 'w').write(digest.hexdigest())
print(os.environ.get('QUILT_HASH'), os.environ.get('GIT_HASH'), os.environ.get('SEED'))
sys.exit(int(os.environ.get('EXIT', '0')))
`
const folder = testFolder(t)
const runs = new Runs(folder)
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 20)
const second = await writeRegistry(join(folder, 'registry'), 'test/second', { 'a/x.txt': 'x', 'y.txt': 'yy' })
const commit = await runs.commit({ 'train.py': TRAIN })
const data = join(folder, 'data')
const at = (i: number) => join(data, `train/${String(i).padStart(6, '0')}.jpg`)
const train = (...paths: string[]) => ['--', 'python3', 'train.py', ...paths]
const mount = ['--mount', `${written.reference}:${data}`]

const dependency = (run: { readonly record: string }, name: string) =>
  statementOf(run).predicate.buildDefinition.resolvedDependencies.find((one: { name: string }) => one.name === name)

t.test('a run has the three hashes, and its ledger is what it has read (S50)', async t => {
  const out = join(folder, 'out')
  const run = await runs.run(
    '--host',
    ...mount,
    '--output',
    out,
    '-e',
    'SEED=7',
    '-e',
    'EXIT=5',
    ...train(at(3), at(3), at(1)),
  )
  t.match(run, { exitCode: 5, topHashes: [written.topHash], gitCommit: commit, imageDigest: null })
  t.match(readFileSync(join(run.record, 'stdout.log'), 'utf8'), `${written.topHash} ${commit} 7`)
  const reads = readsOf(run)
  t.same(
    reads.map(({ key, via, count }) => [key, via, count]),
    [
      ['train/000001.jpg', 'fuse', 1],
      ['train/000003.jpg', 'fuse', 2],
    ],
  )
  for (const { key, size } of reads) t.equal(size, readFileSync(written.paths.get(key)!).length)
  const model = readFileSync(join(out, 'model'))
  t.same(run.outputs, [{ path: 'model', size: model.length, sha256: createHash('sha256').update(model).digest('hex') }])
  t.same(mountsBelow(folder), [], 'nothing stays mounted')
  t.notOk(existsSync(data), 'nor the mountpoint that it has made')
  const { stdout, status } = await runs.bobbin('record', 'verify', run.runId, '--json')
  t.equal(status, 0)
  t.match(JSON.parse(stdout), { ok: true, reads: 2, outputs: 1 })
})

t.test('the statements are in-toto and SLSA, with digests under their own names', async t => {
  const run = await runs.run('--host', ...mount, ...train(at(0)))
  const { subject, predicate, ...rest } = statementOf(run)
  t.match(rest, { _type: 'https://in-toto.io/Statement/v1', predicateType: 'https://slsa.dev/provenance/v1' })
  const sha256 = createHash('sha256')
    .update(readFileSync(join(run.record, 'reads.jsonl')))
    .digest('hex')
  t.match(subject, [{ name: 'reads.jsonl', digest: { sha256 } }])
  const dependencies = new Map(
    predicate.buildDefinition.resolvedDependencies.map((one: { name: string }) => [one.name, one]),
  )
  const manifest = createHash('sha256').update(readFileSync(written.manifestPath)).digest('hex')
  t.match(dependencies.get('dataset'), { digest: { quiltTopHash: written.topHash, sha256: manifest } })
  t.match(dependencies.get('source'), { digest: { gitCommit: commit }, annotations: { dirty: false } })
  t.match(dependencies.get('reads'), { annotations: { entriesRead: 1, complete: true } })
  t.match(predicate.runDetails.metadata, { invocationId: run.runId })
  const trace = statementOf(run, 'trace.json')
  t.match(trace.predicateType, /runtime-trace\/v0\.1/)
  t.match(trace.predicate.monitorLog.fileAccess, [{ name: 'train/000000.jpg', annotations: { via: 'fuse', count: 1 } }])
})

t.test('changed code has an exact tree of its own, and can be refused', async t => {
  writeFileSync(join(runs.code, 'new file.txt'), 'new')
  appendFileSync(join(runs.code, 'train.py'), '# changed\n')
  t.teardown(async () => {
    rmSync(join(runs.code, 'new file.txt'))
    await runs.git('checkout', '--quiet', '--', '.')
  })
  const before = (await runs.git('status', '--porcelain')).stdout
  const run = await runs.run('--host', ...mount, ...train())
  t.equal((await runs.git('status', '--porcelain')).stdout, before, 'the repository is as it was')
  t.match(factsOf(run).code, { commit, isDirty: true, untracked: 1 })
  const copy = join(folder, 'copy')
  await runProgram('git', ['clone', '--quiet', runs.code, copy])
  t.equal((await runProgram('git', ['-C', copy, 'apply', join(run.record, 'source.diff')])).status, 0)
  await runProgram('git', ['-C', copy, 'add', '--all'])
  t.equal((await runProgram('git', ['-C', copy, 'write-tree'])).stdout.trim(), run.gitTree)
  const refused = await runs.bobbin('run', '--host', '--require-clean', ...mount, ...train())
  t.equal(refused.status, 2)
  t.match(refused.stderr, /differs from its commit \(1 new files/)
  const again = await runs.bobbin('reproduce', run.runId, ...ALLOW_HOST, '--json')
  t.equal(again.status, 0, again.stderr)
  t.match(JSON.parse(again.stdout), { equal: true })
})

t.test('what lay in the output folder before the run is neither its code nor its output', async t => {
  const out = join(runs.code, 'out')
  mkdirSync(out)
  writeFileSync(join(out, 'old'), 'old')
  writeFileSync(join(out, 'model'), 'of an earlier run')
  t.teardown(() => rmSync(out, { recursive: true }))
  const run = await runs.run('--host', '--require-clean', '--output', out, ...mount, ...train(at(4)))
  t.equal(run.exitCode, 0)
  t.match(factsOf(run).code, { commit, isDirty: false, untracked: 0 })
  t.same(
    run.outputs.map(({ path }) => path),
    ['model'],
    'what it wrote over is its own, what it left alone is not',
  )
  t.match(exitOf(run), { problems: [/before the run .*out held 2 files/] })

  const target = `file://${folder}/pushed/test/model`
  const pushed = await runs.bobbin('record', 'push', run.runId, target, '--json')
  t.equal(pushed.status, 0, pushed.stderr)
  const { stdout } = await runs.bobbin('ls', target, '-R')
  t.match(stdout, /^model$/m)
  t.notMatch(stdout, /^old$/m)

  writeFileSync(join(out, 'model'), 'changed since')
  const refused = await runs.bobbin('record', 'push', run.runId, target)
  t.equal(refused.status, 13)
  t.match(refused.stderr, /have changed since the run .*model is changed/)
})

t.test('two runs on one package, and on one mount, have two ledgers', async t => {
  const shared = join(folder, 'shared')
  mkdirSync(shared)
  await runs.cli.text('mount', written.reference, shared)
  const [one, two] = await Promise.all(
    [1, 2].map(i => {
      const own = join(folder, `own-${i}`)
      return runs.run('--host', '--mount', `${shared}:${own}`, ...train(join(own, `train/00000${i}.jpg`)))
    }),
  )
  for (const [i, run] of [one!, two!].entries())
    t.same(
      readsOf(run).map(({ key }) => key),
      [`train/00000${i + 1}.jpg`],
    )
  await runs.cli.text('umount', shared)
})

t.test('what the loader delivers is in the ledger, and what it did not is not', async t => {
  const script = `
import json, os, subprocess
def ask(path, *more):
    url = 'http://loader' + path
    return subprocess.run(['curl', '-sSf', '--unix-socket', os.environ['BOBBIN_SIDECAR'][5:], url, *more], check=True, capture_output=True).stdout
plan = json.loads(ask('/v1/plans', '-H', 'content-type: application/json', '-d', json.dumps({'package': '${written.reference}', 'batch': {'global': 4}, 'order': {'algo': 'sequential'}})))
ask('/v1/plans/%s/batches?step=1' % plan['planId'])
ask('/v1/plans/%s/batches?step=1' % plan['planId'], '-H', 'accept: application/vnd.bobbin.paths+ndjson')
ask('/v1/p/${written.topHash}/train/000019.cls')
`
  const run = await runs.run('--host', ...mount, '--', 'python3', '-c', script)
  t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  const reads = readsOf(run).map(({ key, via, count }) => `${key} ${via} ${count}`)
  const expected = [4, 5, 6, 7].flatMap(i =>
    ['cls', 'jpg'].flatMap(suffix => ['paths', 'tar'].map(via => `train/00000${i}.${suffix} ${via} 1`)),
  )
  t.same(reads, [...expected, 'train/000019.cls entry 1'])
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
})

t.test("a run's loader gives what the run has mounted, and nothing else (S62)", async t => {
  const secret = join(folder, 'secret')
  writeFileSync(secret, 'the key of the host')
  const evil = await writeRegistry(join(folder, 'evil'), 'test/evil', {
    'a.txt': { bytes: 'the key of the host', physicalKey: `file://${secret}` },
  })
  const other = await writeSamples(join(folder, 'registry'), 4, { name: 'test/other' })
  const script = `
import json, os, subprocess
def status(path, body=None):
    more = [] if body is None else ['-H', 'content-type: application/json', '-d', json.dumps(body)]
    call = ['curl', '-sS', '-o', '/dev/null', '-w', '%{http_code} ', '--unix-socket', os.environ['BOBBIN_SIDECAR'][5:], 'http://loader' + path, *more]
    subprocess.run(call, check=True)
for package in ('${evil.reference}', '${other.reference}', 's3://somebody-elses/test/samples@${written.topHash}', '${written.reference}'):
    status('/v1/plans', {'package': package, 'batch': {'global': 1}})
    status('/v1/get', {'package': package, 'entries': [{'key': 'a.txt'}]})
status('/v1/p/${other.topHash}/train/000000.cls')
status('/v1/p/${written.topHash}/train/000000.cls')
`
  process.env.BOBBIN_ALLOW = `file://${folder}`
  t.teardown(() => delete process.env.BOBBIN_ALLOW)
  const saidOf = async (...args: string[]) => {
    const run = await runs.run('--host', ...args, '--', 'python3', '-c', script)
    t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
    return readFileSync(join(run.record, 'stdout.log'), 'utf8').trim().split(/\s+/)
  }
  const none = (count: number) => Array.from({ length: count }, () => '404')
  t.same(await saidOf(...mount), [...none(6), '201', '404', '404', '200'])
  t.same(await saidOf(), none(10), 'a run without mounts has a loader that gives nothing')
})

t.test('a signed record is checked, and one that was edited by a byte is refused (S51)', async t => {
  const [key, publicKey] = [join(folder, 'key.pem'), join(folder, 'public.pem')]
  await runProgram('openssl', ['genpkey', '-algorithm', 'ed25519', '-out', key])
  await runProgram('openssl', ['pkey', '-in', key, '-pubout', '-out', publicKey])
  const run = await runs.run('--host', '--key', key, ...mount, ...train(at(0), at(1)))
  const verify = () => runs.bobbin('record', 'verify', run.record, '--public-key', publicKey)
  t.equal((await verify()).status, 0)
  for (const name of ['statement.json', 'trace.json', 'reads.jsonl', 'run.intoto.jsonl', 'stdout.log', 'run.json']) {
    const path = join(run.record, name)
    const bytes = readFileSync(path)
    // Of what is said in it, not of its spaces.
    for (const part of name === 'stdout.log' ? [0.3] : [0.3, 0.5, 0.7]) {
      let place = Math.floor(bytes.length * part)
      while (!/[0-9a-f]/.test(String.fromCharCode(bytes[place]!))) place++
      const edited = Buffer.from(bytes)
      edited[place] = edited[place] === 0x31 ? 0x32 : 0x31
      writeFileSync(path, edited)
      const { status, stderr } = await verify()
      t.not(status, 0, `${name}, byte ${place}: ${stderr}`)
    }
    // No JSON any more, or what is no row.
    writeFileSync(path, bytes.subarray(0, -5))
    const cut = await verify()
    t.not(cut.status, 0)
    t.notMatch(cut.stderr, /this is a bug/, name)
    writeFileSync(path, bytes)
  }
  t.equal((await verify()).status, 0)
  const [command, ...before] = AS_USERS_DO
  const nonsense = ['-C', run.record, command!, ...before, process.execPath, bobbinPath, 'runs', 'nonsense']
  const within = await runProgram('env', nonsense)
  t.equal(within.status, 10, 'a word is no folder, also in one of a record')
  const other = join(folder, 'other.pem')
  await runProgram('sh', ['-c', `openssl genpkey -algorithm ed25519 | openssl pkey -pubout -out ${other}`])
  const refused = await runs.bobbin('record', 'verify', run.record, '--public-key', other)
  t.equal(refused.status, 13)
  t.match(refused.stdout, /not signed by this key/)
})

t.test('a run can be done again, by what its record says, with an empty cache', async t => {
  const run = await runs.run('--host', ...mount, '--output', join(folder, 'first'), ...train(at(5), at(6)))
  const elsewhere = new Runs(join(folder, 'elsewhere'))
  t.teardown(() => elsewhere.cli.try('stop', '--force'))
  mkdirSync(elsewhere.code, { recursive: true })
  const again = await elsewhere.bobbin('reproduce', run.record, ...ALLOW_HOST, ...ALLOW_CODE, '--json')
  t.equal(again.status, 0, again.stderr)
  const answer = JSON.parse(again.stdout) as RunAnswer & { readonly equal: boolean }
  t.match(answer, { equal: true, outputs: [{ path: 'model', change: 'same' }] })
  t.same(
    readsOf(answer).map(({ key, hash }) => [key, hash]),
    readsOf(run).map(({ key, hash }) => [key, hash]),
  )
  const of = ({ ref, remote, tree }: NonNullable<RunFacts['code']>) => ({ ref, remote, tree })
  t.same(of(factsOf(answer).code!), of(factsOf(run).code!), 'its code is where the first one found it')
  const random = await runs.run(
    '--host',
    '--output',
    join(folder, 'random'),
    '--',
    'sh',
    '-c',
    'date +%N > $BOBBIN_OUTPUT/time',
  )
  const differs = await runs.bobbin('reproduce', random.runId, ...ALLOW_HOST)
  t.equal(differs.status, 13)
  t.match(differs.stdout, /changed {2}time/)
})

t.test('signals reach the command, and how it ended is what we end with', async t => {
  const script = 'trap "echo caught; exit 9" TERM; echo ready; while :; do sleep 0.1; done'
  for (const [signal, code] of [
    ['SIGTERM', 9],
    ['SIGINT', 130],
  ] as const) {
    const child = started(
      runs.start('--host', ...mount, '--', 'bash', '-c', signal === 'SIGTERM' ? script : 'echo ready; sleep 60'),
    )
    await until('it runs', () => child.stderr().includes('ready'), 30_000)
    child.process.kill(signal)
    t.equal(await child.ended, code, child.stderr())
    t.match(JSON.parse(child.stdout()), { exitCode: code })
    t.same(mountsBelow(folder), [])
  }
})

t.test('a signal before the command has started leaves nothing', async t => {
  const source = await startHeldServer()
  t.teardown(() => source.stop())
  const far = new Runs(join(folder, 'far'), source.env)
  t.teardown(() => far.cli.try('stop', '--force'))
  await far.commit({ 'train.sh': 'true' })
  source.hold()
  const child = far.start('--host', '--mount', `s3://held/test/far@${'1'.repeat(64)}:${data}`, '--', 'true')
  await until('it asks the registry', () => source.waiting > 0, 30_000)
  child.kill('SIGINT')
  t.equal(await new Promise(resolve => child.once('exit', resolve)), 130)
  t.same(readdirSync(join(far.state, 'runs')), [])
  t.same(mountsBelow(folder), [])
})

t.test("a name that quilt3's remote registry does not know is mounted from its local one (S155)", async t => {
  const home = join(folder, 'quilt-home')
  await writeRegistry(join(home, 'Quilt/packages'), 'loc/only', { x: 'x' })
  writeFileSync(join(home, 'Quilt/config.yml'), `default_remote_registry: file://${folder}/registry\n`)
  const local = new Runs(join(folder, 'quilt'), { XDG_DATA_HOME: home, XDG_CONFIG_HOME: home, HOME: home })
  t.teardown(() => local.cli.try('stop', '--force'))
  await local.commit({ 'train.sh': 'true' })
  const ran = await local.bobbin('run', '--host', '--mount', `loc/only:${data}`, '--', 'cat', join(data, 'x'))
  t.match(ran, { status: 0, stderr: /loc\/only is not in file:.*registry, but in quilt3's local registry/ })
  t.match(ran.stdout + ran.stderr, /^x/m)
})

t.test('status shows the runs that are under way', async t => {
  const child = runs.start('--host', ...mount, '--', 'sleep', '60')
  const running = async () => (await runs.cli.json<{ runs: { pid: number; command: string[] }[] }>('status')).runs
  await until('it is there', async () => (await running()).some(({ pid }) => pid === child.pid), 30_000)
  t.match(await running(), [{ command: ['sleep', '60'] }])
  child.kill('SIGTERM')
  t.equal(await new Promise(resolve => child.once('exit', resolve)), 143)
  t.same(await running(), [])
})

t.test('a run whose process was killed has a record that says so (S52)', async t => {
  const child = started(
    runs.start('--host', ...mount, '--', 'bash', '-c', `cat ${at(2)} > /dev/null; echo ready; exec sleep 500`),
  )
  await until('it runs', () => child.stderr().includes('ready'), 30_000)
  const runId = readdirSync(join(runs.state, 'runs')).sort().at(-1)!
  child.process.kill('SIGKILL')
  t.equal(await child.ended, 'SIGKILL')
  // Whoever starts the next one, it is not the run's.
  const { daemon } = await runs.cli.json<{ daemon: { pid: number } }>('status')
  process.kill(daemon.pid, 'SIGKILL')
  await until('there is another one', async () => (await runs.cli.try('status')).status === 0, 30_000)
  const left = () => processesWith('BOBBIN_RUN', runId).sort()
  t.match(left(), [/ loader --json /, /^sleep 500 $/], 'its loader and its command go on')
  const rows = await runs.cli.rows<{ runId: string; state: string; record: string }>('runs')
  const row = rows.find(one => one.runId === runId)!
  t.equal(row.state, 'killed')
  t.same(left(), [], 'until somebody looks')
  t.equal((await runs.cli.try('status')).status, 0, 'the daemon stays')
  const exit = statementOf(row).predicate.runDetails.byproducts.find((one: { name: string }) => one.name === 'exit')
  t.match(JSON.parse(Buffer.from(exit.content, 'base64').toString()), { killed: true })
  t.equal((await runs.bobbin('record', 'verify', runId)).status, 0)
  t.same(mountsBelow(folder), [])
})

t.test('a killed daemon is no error in a run, and its ledger lacks nothing', async t => {
  const script = `import os, signal, sys, time
open(sys.argv[1]).close()
os.kill(int(sys.argv[3]), signal.SIGKILL)
open(sys.argv[2], 'rb').read()`
  await runs.cli.text('mount', second.reference, data, '--mkdir')
  const { daemon } = await runs.cli.json<{ daemon: { pid: number } }>('status')
  await runs.cli.text('umount', data)
  const run = await runs.run('--host', ...mount, '--', 'python3', '-c', script, at(11), at(12), String(daemon.pid))
  t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  // The first open was on its way to the daemon when that died.
  t.same(
    readsOf(run).map(({ key, count }) => [key, count]),
    [
      ['train/000011.jpg', 1],
      ['train/000012.jpg', 1],
    ],
  )
  t.match(dependency(run, 'reads'), { annotations: { complete: true } })
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
})

t.test('records of several nodes become one', async t => {
  const [a, b] = [
    await runs.run('--host', ...mount, '--output', join(folder, 'a'), '-e', 'RANK=0', ...train(at(0), at(1))),
    await runs.run('--host', ...mount, '--output', join(folder, 'b'), '-e', 'RANK=1', ...train(at(0), at(1))),
  ]
  const { stdout, status, stderr } = await runs.bobbin('record', 'merge', a.runId, b.runId, '--json')
  t.equal(status, 0, stderr)
  const merged = JSON.parse(stdout) as RunAnswer & { nodes: object[] }
  t.match(merged.nodes, [
    { runId: a.runId, env: { RANK: '0' } },
    { runId: b.runId, env: { RANK: '1' } },
  ])
  t.equal(new Set((factsOf(merged).outputs ?? []).map(({ path }) => path)).size, 2, 'each has its own outputs')
  t.same(
    readsOf(merged).map(({ key, count }) => [key, count]),
    [
      ['train/000000.jpg', 2],
      ['train/000001.jpg', 2],
    ],
  )
  t.equal((await runs.bobbin('record', 'verify', merged.runId)).status, 0)
  const shown = (await runs.bobbin('runs', merged.runId)).stdout
  t.match(shown, /^node {5}/m)
  t.match(shown, /^outputs {2}2 in the folders of the nodes$/m)
  const twice = await runs.bobbin('record', 'merge', a.runId, a.runId)
  t.equal(twice.status, 2)
  t.match(twice.stderr, /named twice/)
  const again = await runs.bobbin('reproduce', merged.runId)
  t.equal(again.status, 2)
  t.match(again.stderr, /has 2 nodes/)
  const other = await runs.run('--host', ...mount, ...train(at(2)))
  const refused = await runs.bobbin('record', 'merge', a.runId, other.runId)
  t.equal(refused.status, 2)
  t.match(refused.stderr, /the command differs/)
})

t.test('what cannot be is said before anything is started', async t => {
  const cases: readonly [string[], number, RegExp][] = [
    [['--host'], 2, /name the command/],
    [['--host', '--', 'no-such-program'], 2, /no such program/],
    [['--host', '--mount', written.reference, '--', 'true'], 2, /PKG:\/PATH/],
    [['--host', '--mount', `${written.reference.slice(0, -64)}${'0'.repeat(64)}:${data}`, '--', 'true'], 10, /0{8}/],
    [['--host', '--env', '--privileged', '--', 'true'], 2, /NAME=VALUE/],
    [['--host', '--code', folder, '--', 'true'], 2, /not in a git repository/],
    [['--host', '--key', join(folder, 'registry'), '--', 'true'], 1, /key/],
    [['--host', '--output', '/dev/null/out', '--', 'true'], 1, /outputs/],
    [['--host', '--gpus', 'all', '--volume', '/a:/a', '--', 'true'], 2, /--gpus, --volume: only for containers/],
    [['--host', '--engine', 'docker', '--memory', '1g', '--', 'true'], 2, /--engine, --memory: only for containers/],
  ]
  for (const [args, code, words] of cases) {
    const { status, stderr } = await runs.bobbin('run', ...args)
    t.equal(status, code, `${args.join(' ')}: ${stderr}`)
    t.match(stderr, words)
  }
  t.same(mountsBelow(folder), [])
  const all = await runs.bobbin(
    'run',
    '--host',
    '--env',
    'A B',
    '--code',
    folder,
    '--output',
    '/dev/null/out',
    '--',
    'true',
  )
  t.equal(all.status, 2)
  for (const words of [/cannot start:/, /NAME=VALUE/, /not in a git repository/, /outputs/]) t.match(all.stderr, words)
  const count = readdirSync(join(runs.state, 'runs')).length
  await runs.bobbin('run', '--host', '--', 'no-such-program')
  t.equal(readdirSync(join(runs.state, 'runs')).length, count, 'no folder is left of what never ran')
  const none = await runs.bobbin('record', 'verify', 'ffff')
  t.equal(none.status, 10)
})

t.test('an image is pulled when nothing else is the matter', async t => {
  const bin = join(folder, 'bin')
  mkdirSync(bin)
  const pulled = join(folder, 'pulled')
  // An engine that has nothing, and cannot reach its registry.
  const script = `case $1 in info) echo '{"ServerVersion":"1"}';; image) exit 1;; pull) touch '${pulled}'; echo 'dial tcp: lookup x.test: no such host' >&2; exit 1;; esac`
  writeFileSync(join(bin, 'docker'), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  const withEngine = new Runs(folder, { PATH: `${bin}:${process.env.PATH}` })
  const run = (...args: string[]) => withEngine.bobbin('run', '--engine', 'docker', ...args, 'x.test/image:1', 'true')
  for (const wrong of [
    ['--env', 'A B'],
    ['--mount', `${written.reference}:/`],
    ['--code', folder],
  ]) {
    const { status, stderr } = await run(...wrong)
    t.equal(status, 2, stderr)
    t.notOk(existsSync(pulled), `not with ${wrong.join(' ')}`)
  }
  const { status, stderr } = await run()
  t.ok(existsSync(pulled))
  t.equal(status, 75, stderr)
  t.match(stderr, /x\.test\/image:1 cannot be had: .*no such host/)
})
