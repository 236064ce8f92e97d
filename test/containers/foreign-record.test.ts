/** A stranger's record and a real engine: what it cannot make run, what has to be allowed, and what the new record says of it. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { RunFacts } from '../../cli/record/run-facts.js'
import { mountsBelow, testFolder } from '../support/daemon.js'
import { startDocker } from '../support/docker.js'
import { factsOf, type RunAnswer, Runs, statementOf } from '../support/runs.js'
import { writeSamples } from '../support/samples.js'

t.setTimeout(600_000)

const docker = await startDocker(t)
const folder = testFolder(t)
const runs = new Runs(folder, { ...docker.env, SECRET: 'my secret' })
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 4)
await runs.commit({ 'code.txt': 'the code' })
await docker.image('local:1', 'local')
await docker.image('evil/image:latest', 'evil')
const idOf = async (name: string) => JSON.parse(await docker.run('image', 'inspect', name))[0].Id as string
const script = 'cat /which; echo; env; ls -d /host; touch /host/hit; touch $BOBBIN_OUTPUT/x'
const out = join(folder, 'out')
const line = [
  '--mount',
  `${written.reference}:/data`,
  '--network',
  'none',
  '--output',
  out,
  'local:1',
  'sh',
  '-c',
  script,
]
const first = await runs.run(...line)
const facts = factsOf(first)

/** The first record, as somebody sends it. */
function sent(name: string, change: Partial<RunFacts>): string {
  const record = join(folder, name)
  cpSync(first.record, record, { recursive: true })
  writeFileSync(join(record, 'run.json'), JSON.stringify({ ...facts, ...change }))
  return record
}

const ran = () => readdirSync(join(runs.state, 'runs')).length
const said = (answer: RunAnswer) => readFileSync(join(answer.record, 'stdout.log'), 'utf8')
const host = join(folder, 'host')
mkdirSync(host)

t.test('what a stranger has put among the options starts no container, of whatever image (S75)', async t => {
  const before = ran()
  const hostile: readonly Partial<RunFacts>[] = [
    { options: ['--privileged', '--volume=/:/host', 'evil/image', ...facts.options] },
    { options: ['--'] },
    { options: ['--network=none', '--network=host'] },
    { image: { ...facts.image!, reference: '--privileged' } },
    { image: { ...facts.image!, reference: 'evil/image:latest' } },
    { passed: ['*'] },
  ]
  for (const [i, change] of hostile.entries()) {
    const allow = ['volumes', 'network', 'variables'].map(right => `--allow-${right}`)
    const { status, stderr } = await runs.bobbin('reproduce', sent(`hostile-${i}`, change), ...allow)
    t.equal(status, 2, stderr)
    t.match(stderr, /not one that bobbin run writes|there twice/)
  }
  const evil = sent('evil', { image: { ...facts.image!, reference: await idOf('evil/image') } })
  t.match(await runs.bobbin('reproduce', evil), { status: 10, stderr: /the record has sha256:/ })
  t.equal(ran(), before)
  t.equal(await docker.run('ps', '--all', '--quiet'), '')
})

t.test('a folder, a secret and a variable are given only to a record that was allowed them (S76)', async t => {
  const asking = sent('asking', {
    options: ['--network=none', `--volume=${host}:/host`],
    passed: ['SECRET'],
    env: { MODE: 'fast' },
  })
  const before = ran()
  const refused = await runs.bobbin('reproduce', asking)
  t.equal(refused.status, 2)
  for (const words of [
    `--volume=${host}:/host`,
    'SECRET, with the value',
    'MODE=fast',
    '--allow-volumes --allow-variables',
  ])
    t.match(refused.stderr, words)
  t.match(await runs.bobbin('reproduce', asking, '--allow-volumes'), { status: 2, stderr: /SECRET/ })
  t.match(await runs.bobbin('reproduce', asking, '--allow-variables'), { status: 2, stderr: /--volume/ })
  t.equal(ran(), before)
  t.notOk(existsSync(join(host, 'hit')), 'nothing was started')

  const again = await runs.bobbin('reproduce', asking, '--allow-volumes', '--allow-variables', '--json')
  t.ok(existsSync(join(host, 'hit')), again.stderr)
  const answer = JSON.parse(again.stdout) as RunAnswer
  t.match(said(answer), 'SECRET=my secret')
  const { options, env, passed } = factsOf(answer)
  t.same(
    { options, env, passed },
    {
      options: ['--network=none', `--volume=${host}:/host`],
      env: { MODE: 'fast' },
      passed: ['SECRET'],
    },
  )
  t.notMatch(readFileSync(join(answer.record, 'run.json'), 'utf8'), 'my secret')
})

t.test('a new record names the image that ran, whatever the old one calls it (S77)', async t => {
  const lying = { ...facts.image!, asked: 'nvcr.io/nvidia/pytorch:25.06-py3', repository: 'nvcr.io/nvidia/pytorch' }
  const again = await runs.bobbin('reproduce', sent('lying', { image: lying }), '--json')
  t.equal(again.status, 0, again.stderr)
  const answer = JSON.parse(again.stdout) as RunAnswer
  t.match(said(answer), /^local\n/)
  const id = await idOf('local:1')
  t.match(factsOf(answer).image, { asked: id, reference: id, digest: id, repository: null })
  t.notMatch(JSON.stringify(statementOf(answer)), 'pytorch')
  const honest = JSON.parse((await runs.bobbin('reproduce', first.runId, '--json')).stdout) as RunAnswer
  t.match(factsOf(honest).image, { asked: 'local:1', digest: id }, 'a name that it has here is kept')
  t.same(mountsBelow(folder), [])
})
