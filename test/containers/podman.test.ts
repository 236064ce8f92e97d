/** `bobbin run --engine podman`: the same as with docker's engine, rootful and on an image that was imported. */
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { mountsBelow, testFolder, until } from '../support/daemon.js'
import { startPodman } from '../support/docker.js'
import { factsOf, type RunAnswer, Runs, readsOf, started } from '../support/runs.js'
import { writeSamples } from '../support/samples.js'

t.setTimeout(600_000)

const podman = await startPodman(t)
const folder = testFolder(t)
const runs = new Runs(folder, podman.env)
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 6)
const commit = await runs.commit({ 'code.txt': 'the code' })
const given = ['--engine', 'podman', '--mount', `${written.reference}:/data`, '--network', 'none']
const key = 'train/000003.jpg'
const containers = () => podman.run('ps', '--all', '--quiet')
await podman.image('local:1', 'local')

t.test('a container of podman sees data, code, outputs and hashes, and may write outputs alone', async t => {
  const out = join(folder, 'out')
  const script = `echo $GIT_HASH $DOCKER_HASH $QUILT_HASH
cat /code/code.txt
sha256sum < /data/${key} > $BOBBIN_OUTPUT/sum
touch /data/x 2> /dev/null && exit 90
touch /code/x 2> /dev/null && exit 91
ls /bobbin/mounts/0/data > /dev/null || exit 93
exit 7`
  const run = await runs.run(...given, '--output', out, 'local:1', 'sh', '-c', script)
  t.equal(run.exitCode, 7, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  const said = readFileSync(join(run.record, 'stdout.log'), 'utf8')
  t.equal(said, `${commit} ${run.imageDigest} ${written.topHash}\nthe code`)
  const sum = createHash('sha256')
    .update(readFileSync(written.paths.get(key)!))
    .digest('hex')
  t.equal(readFileSync(join(out, 'sum'), 'utf8'), `${sum}  -\n`)
  t.same(
    readsOf(run).map(row => [row.key, row.via, row.count]),
    [[key, 'fuse', 1]],
  )
  t.match(factsOf(run), {
    engine: { name: 'podman' },
    image: { asked: 'local:1', digest: /^sha256:[0-9a-f]{64}$/, localOnly: true, repository: null },
  })
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
  t.equal((await runs.bobbin('reproduce', run.runId)).status, 0)
  t.equal(await containers(), '', 'no container is left')
  t.same(mountsBelow(folder), [])
})

t.test('an image that podman has pulled is done again by its digest', async t => {
  const name = `${podman.registry}/team/trainer:v1`
  const push = async (text: string) => {
    await podman.image(name, text)
    await podman.run('push', '--quiet', name)
    await podman.run('image', 'rm', '--force', name)
  }
  await push('first')
  const run = await runs.run(...given, '--output', join(folder, 'tag'), name, 'sh', '-c', 'cp /which $BOBBIN_OUTPUT')
  t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  t.match(factsOf(run).image, { localOnly: false, digest: run.imageDigest, platformManifest: run.imageDigest })
  await podman.run('image', 'rm', '--force', name)
  await push('second')
  const again = await runs.bobbin('reproduce', run.runId, '--json')
  t.equal(again.status, 0, again.stderr)
  t.equal(readFileSync(join((JSON.parse(again.stdout) as RunAnswer).record, 'outputs/which'), 'utf8'), 'first')
})

t.test('a signal ends the container of podman, and so does the death of who looks after it', async t => {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const line = [...given, 'local:1', 'sh', '-c', 'cat /data/train/000001.cls; echo ready; sleep 600']
    const child = started(runs.start(...line))
    await until('it runs', () => child.stderr().includes('ready'), 60_000)
    const runId = readdirSync(join(runs.state, 'runs')).sort().at(-1)!
    child.process.kill(signal)
    t.equal(await child.ended, signal === 'SIGTERM' ? 143 : signal, child.stderr())
    const rows = await runs.cli.rows<{ runId: string; state: string; record: string }>('runs')
    const row = rows.find(one => one.runId === runId)!
    t.equal(row.state, signal === 'SIGTERM' ? 'exit 143' : 'killed')
    t.same(
      readsOf(row).map(one => one.key),
      ['train/000001.cls'],
    )
    await until('no container is left', async () => (await containers()) === '')
    t.same(mountsBelow(folder), [])
  }
})
