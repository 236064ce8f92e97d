/** `bobbin run` with a real engine: what the container sees, which image it is, and what becomes of it. */
import { createHash } from 'node:crypto'
import { chmodSync, existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { runProgram } from '../support/cli.js'
import { mountsBelow, testFolder, until } from '../support/daemon.js'
import { startDocker } from '../support/docker.js'
import { repository } from '../support/parts.js'
import { factsOf, type RunAnswer, Runs, readsOf, started, statementOf } from '../support/runs.js'
import { writeSamples } from '../support/samples.js'
import { skipTest } from '../support/skips.js'

t.setTimeout(600_000)

const docker = await startDocker(t)
const folder = testFolder(t)
const runs = new Runs(folder, docker.env)
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 12)
const commit = await runs.commit({ 'code.txt': 'the code' })
const mount = ['--mount', `${written.reference}:/data`]
const network = ['--network', 'none']
await docker.image('local:1', 'local')
const pushed = `${docker.registry}/team/trainer:v1`
await docker.image(pushed, 'first')
await docker.run('push', '--quiet', pushed)

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const key = 'train/000003.jpg'

t.test('a container sees data, code, outputs and the three hashes, and may write outputs alone (S50)', async t => {
  const out = join(folder, 'out')
  const script = `echo $GIT_HASH $DOCKER_HASH $QUILT_HASH $QUILT_HASH_1 $SEED
cat /code/code.txt
sha256sum < /data/${key} > $BOBBIN_OUTPUT/sum
touch /data/x 2> /dev/null && exit 90
touch /code/x 2> /dev/null && exit 91
ls /bobbin/mounts/0/data > /dev/null || exit 93
exit 7`
  const run = await runs.run(...mount, ...network, '--output', out, '-e', 'SEED=3', pushed, 'sh', '-c', script)
  t.equal(run.exitCode, 7, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  const said = readFileSync(join(run.record, 'stdout.log'), 'utf8')
  t.equal(said, `${commit} ${run.imageDigest} ${written.topHash} ${written.topHash} 3\nthe code`)
  const content = readFileSync(written.paths.get(key)!)
  t.equal(readFileSync(join(out, 'sum'), 'utf8'), `${sha256(content)}  -\n`)
  t.same(
    readsOf(run).map(row => [row.key, row.via, row.count, row.size]),
    [[key, 'fuse', 1, content.length]],
  )
  t.match(factsOf(run).machine, { cpu: String, cpus: Number, gpus: Array })
  t.same(factsOf(run).python, undefined, 'what Python is in a container says its image')
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
  t.equal(await docker.run('ps', '--all', '--quiet'), '', 'no container is left')
  t.same(mountsBelow(folder), [])
})

t.test('a container writes above its data with --scratch, as any user, and its record says what (S168)', async t => {
  const disk = testFolder(t)
  // The folder of tests may lie on an overlay, which takes no upper layer.
  t.equal((await runProgram('mount', ['-t', 'tmpfs', 'tmpfs', disk])).status, 0)
  t.teardown(() => runProgram('umount', ['-l', disk]))
  const there = new Runs(disk, docker.env)
  t.teardown(() => there.cli.try('stop', '--force'))
  await there.commit({ 'code.txt': 'the code' })
  const script = `cd /data/train; id -u; echo cache > labels.cache; echo more >> 000003.cls; cat 000001.jpg > /dev/null`
  for (const user of ['0:0', '1234:1234']) {
    const flags = ['--scratch', '--user', user, 'local:1', 'sh', '-ec', script]
    const run = await there.run(...mount, ...network, ...flags)
    t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
    t.match(factsOf(run).written, [
      {
        target: '/data',
        files: [
          { path: 'train/000003.cls', change: 'changed' },
          { path: 'train/labels.cache', size: 6, change: 'added' },
        ],
        hidden: [],
      },
    ])
    t.ok(readsOf(run).some(row => row.key === 'train/000001.jpg'))
    t.equal((await there.bobbin('record', 'verify', run.runId)).status, 0)
  }
  t.same(
    mountsBelow(disk).filter(({ mountpoint }) => mountpoint !== disk),
    [],
  )
})

t.test('what the run reads through its loader is in its ledger', async t => {
  // This machine's Python, and our client for it.
  const host = ['/usr:/usr', '/usr/lib:/lib', '/usr/lib64:/lib64', `${repository}/loader/python/src:/client`]
  const volumes = host.flatMap(volume => ['--volume', `${volume}:ro`])
  const script = `
from bobbin_loader import Plan
plan = Plan.create('${written.reference}', global_batch=4, order='sequential')
for transport in ('paths', 'tar'):
    batch = next(plan.batches(step=1, transport=transport))
    print(transport, [len(sample['jpg']) for sample in batch.samples], batch.samples[0].meta['jpg']['label'])
`
  const python = ['-e', 'PYTHONPATH=/client', 'local:1', '/usr/bin/python3', '-c', script]
  const run = await runs.run(...mount, ...network, ...volumes, ...python)
  t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  const keys = [4, 5, 6, 7].map(i => `train/00000${i}`)
  const sizes = keys.map(base => readFileSync(written.paths.get(`${base}.jpg`)!).length).join(', ')
  const said = readFileSync(join(run.record, 'stdout.log'), 'utf8')
  t.equal(said, `paths [${sizes}] 4\ntar [${sizes}] 4\n`)
  const reads = new Set(readsOf(run).map(row => `${row.key} ${row.via}`))
  for (const via of ['paths', 'tar']) for (const base of keys) t.ok(reads.has(`${base}.jpg ${via}`), `${base} ${via}`)
})

t.test("a container sees no folder of the store: what it gets as paths lies in the run's mounts (S63)", async t => {
  const script = 'cat /proc/self/mountinfo; ls -d /bobbin/*; env | grep BOBBIN_OBJECTS'
  const run = await runs.run(...mount, ...network, 'local:1', 'sh', '-c', script)
  const said = readFileSync(join(run.record, 'stdout.log'), 'utf8')
  t.match(said, / \/bobbin\/mounts /)
  t.notMatch(said, /objects\/v1/)
  t.equal(said.slice(said.indexOf('\n/bobbin')), '\n/bobbin/loader\n/bobbin/mounts\n')
})

t.test('a tag is resolved to what it is now, and the record goes on meaning that', async t => {
  const script = 'cat /which > $BOBBIN_OUTPUT/which'
  const run = await runs.run(...mount, ...network, '--output', join(folder, 'tag'), pushed, 'sh', '-c', script)
  const digest = JSON.parse(await docker.run('image', 'inspect', pushed))[0].RepoDigests[0].split('@')[1]
  t.equal(run.imageDigest, digest)
  t.match(factsOf(run).image, {
    asked: pushed,
    digest,
    platformManifest: digest,
    localOnly: false,
    platform: /^linux\//,
  })
  const image = statementOf(run).predicate.buildDefinition.resolvedDependencies.find(
    (one: { name: string }) => one.name === 'image',
  )
  t.match(image.digest, { sha256: digest.replace('sha256:', '') })
  t.match(image.uri, /^pkg:oci\/trainer@sha256%3A[0-9a-f]{64}\?repository_url=localhost%3A\d+%2Fteam%2Ftrainer&tag=v1$/)

  await docker.image(pushed, 'second')
  await docker.run('push', '--quiet', pushed)
  await docker.run('image', 'prune', '--force', '--all')
  const now = await runs.run(...mount, ...network, '--output', join(folder, 'now'), pushed, 'sh', '-c', script)
  t.equal(readFileSync(join(folder, 'now/which'), 'utf8'), 'second')
  t.not(now.imageDigest, digest)
  const again = await runs.bobbin('reproduce', run.runId, '--json')
  t.equal(again.status, 0, again.stderr)
  const answer = JSON.parse(again.stdout) as RunAnswer
  t.equal(readFileSync(join(answer.record, 'outputs/which'), 'utf8'), 'first', 'pulled by its digest')
  await docker.image('local:1', 'local')
})

t.test('an image that no registry has is marked, and missed when it is gone', async t => {
  await docker.image('gone:1', 'gone')
  const run = await runs.run(...mount, ...network, 'gone:1', 'cat', '/which')
  t.match(factsOf(run).image, { localOnly: true, repository: null })
  t.equal(run.imageDigest, JSON.parse(await docker.run('image', 'inspect', 'gone:1'))[0].Id)
  await docker.run('image', 'rm', '--force', 'gone:1')
  const { status, stderr } = await runs.bobbin('reproduce', run.runId)
  t.equal(status, 10)
  t.match(stderr, /image/)
  const missing = await runs.bobbin('run', ...mount, `${docker.registry}/no/such:1`, 'true')
  t.equal(missing.status, 10)
  t.same(mountsBelow(folder), [], 'and nothing was mounted for it')
})

t.test("docker's containerd store names digests that no registry has, and has no ids of configurations", async t => {
  const other = await startDocker(t, { 'containerd-snapshotter': true })
  const status = await other.run('info', '--format', '{{json .DriverStatus}}')
  if (!status.includes('io.containerd.snapshotter')) return skipTest(t, 'this docker engine has no containerd store')
  const own = new Runs(folder, other.env)
  const name = `${other.registry}/team/model:v1`
  await other.image(name, 'here')
  const image = async () => {
    const run = await own.run(...network, '--no-code', '--no-loader', name, 'cat', '/which')
    t.equal(readFileSync(join(run.record, 'stdout.log'), 'utf8'), 'here')
    t.equal((await own.bobbin('reproduce', run.runId)).status, 0)
    return factsOf(run).image
  }
  const [first] = JSON.parse(await other.run('image', 'inspect', name))
  t.match(first.RepoDigests, [/@sha256:/], 'before it was pushed')
  t.match(await image(), { digest: first.Id, id: null, localOnly: true, repository: null })
  await other.run('push', '--quiet', name)
  const repository = name.replace(':v1', '')
  t.match(await image(), { digest: first.Id, platformManifest: first.Id, id: null, localOnly: false, repository })
})

t.test('a daemon that is killed under a container is no error in it', async t => {
  const script = 'cat /data/train/000001.jpg > /dev/null; echo ready; sleep 1; sha256sum /data/train/000002.jpg'
  const child = started(runs.start(...mount, ...network, 'local:1', 'sh', '-c', script))
  await until('it runs', () => child.stderr().includes('ready'), 60_000)
  const { daemon } = await runs.cli.json<{ daemon: { pid: number } }>('status')
  process.kill(daemon.pid, 'SIGKILL')
  t.equal(await child.ended, 0, child.stderr())
  const content = readFileSync(written.paths.get('train/000002.jpg')!)
  t.match(child.stderr(), sha256(content))
  t.ok(
    readsOf(JSON.parse(child.stdout())).some(row => row.key === 'train/000002.jpg'),
    'what came behind it is in the ledger',
  )
})

t.test('a signal ends the container, and so does the death of who looks after it (S52)', async t => {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const child = runs.start(
      ...mount,
      ...network,
      'local:1',
      'sh',
      '-c',
      'cat /data/train/000001.cls; echo ready; sleep 600',
    )
    let said = ''
    child.stderr!.setEncoding('utf8').on('data', chunk => {
      said += chunk
    })
    await until('it runs', () => said.includes('ready'), 60_000)
    const runId = readdirSync(join(runs.state, 'runs')).sort().at(-1)!
    child.kill(signal)
    const code = await new Promise(resolve => child.once('exit', resolve))
    t.equal(code, signal === 'SIGTERM' ? 143 : null)
    const rows = await runs.cli.rows<{ runId: string; state: string; record: string }>('runs')
    const row = rows.find(one => one.runId === runId)!
    t.equal(row.state, signal === 'SIGTERM' ? 'exit 143' : 'killed')
    t.same(
      readsOf(row).map(one => one.key),
      ['train/000001.cls'],
    )
    await until('no container is left', async () => (await docker.run('ps', '--all', '--quiet')) === '')
    t.same(mountsBelow(folder), [])
  }
})

t.test('nothing that is named can be an option, and what is missing is said', async t => {
  const elsewhere = new Runs(folder, { DOCKER_HOST: 'unix:///nowhere', CONTAINERS_STORAGE_CONF: '/nowhere' })
  const cases: readonly [Runs, string[], RegExp][] = [
    [runs, ['--', '--privileged', 'true'], /not an image/],
    [runs, ['--mount', `${written.reference}:/data,source=/etc`, 'local:1', 'true'], /not an absolute path/],
    [runs, ['--mount', `${written.reference}:/`, 'local:1', 'true'], /not an absolute path/],
    [runs, ['--mount', `${written.reference}:data`, 'local:1', 'true'], /PKG:\/PATH/],
    [runs, ['--env', 'A B=1', 'local:1', 'true'], /NAME=VALUE/],
    [elsewhere, ['local:1', 'true'], /no container engine.*docker.*--host/s],
    [elsewhere, ['--engine', 'podman', 'local:1', 'true'], /no container engine.*podman/s],
  ]
  for (const [from, args, words] of cases) {
    const { status, stderr } = await from.bobbin('run', ...args)
    t.ok(status === 1 || status === 2, `${args.join(' ')}: ${status}`)
    t.match(stderr, words)
  }
  const bare = await runs.run(...network, '--no-loader', '--no-code', 'local:1', 'env')
  t.notMatch(readFileSync(join(bare.record, 'stdout.log'), 'utf8'), /GIT_HASH|BOBBIN_SIDECAR/)
  t.notOk(existsSync(join(bare.record, 'loader.log')))
})

t.test('any user in the container reads data and asks the loader, and no other user of this machine', async t => {
  const volumes = ['/usr:/usr', '/usr/lib:/lib', '/usr/lib64:/lib64'].flatMap(volume => ['--volume', `${volume}:ro`])
  const script = `id; sha256sum /data/${key}; /usr/bin/curl -sSf --unix-socket /bobbin/loader/loader.sock http://x/livez; echo; echo ready; sleep 600`
  const child = runs.start(...mount, ...network, ...volumes, '--user', '1234:1234', 'local:1', 'sh', '-c', script)
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', chunk => {
    said += chunk
  })
  await until('it runs', () => said.includes('ready'), 60_000)
  t.match(said, /uid=1234 gid=1234/)
  t.match(said, sha256(readFileSync(written.paths.get(key)!)))
  t.match(said, '{"ok":true}')
  const record = join(runs.state, 'runs', readdirSync(join(runs.state, 'runs')).sort().at(-1)!)
  for (const above of [folder, runs.state, join(runs.state, 'runs')]) chmodSync(above, 0o755)
  for (const path of ['loader/loader.sock', `mnt/0/data/${key}`, 'run.json']) {
    t.ok(existsSync(join(record, path)))
    const { status } = await runProgram('setpriv', ['--reuid=65534', '--clear-groups', 'ls', join(record, path)])
    t.not(status, 0, `nobody else gets to ${path}`)
  }
  child.kill('SIGTERM')
  t.equal(await new Promise(resolve => child.once('exit', resolve)), 143, said)
})
