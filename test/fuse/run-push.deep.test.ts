/** Outputs of runs as packages: what is in them, when they are pushed, and that a run can be made again from one. */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { testFolder } from '../support/daemon.js'
import { ALLOW_CODE, ALLOW_HOST, type RunAnswer, Runs, statementOf } from '../support/runs.js'
import { writeSamples } from '../support/samples.js'
import { endUnlessMounts } from '../support/skips.js'

t.setTimeout(600_000)
endUnlessMounts(t)

const folder = testFolder(t)
const runs = new Runs(folder, { SECRET: 'a secret' })
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 10)
const commit = await runs.commit({
  'train.sh': 'sha256sum $1/train/*.jpg > $BOBBIN_OUTPUT/model; echo trained; exit $((EXIT))',
})
const data = join(folder, 'data')
const mount = ['--mount', `${written.reference}:${data}`]
const model = `${folder}/models/me/model`
const train = ['--', 'sh', 'train.sh', data]

interface Pushed extends RunAnswer {
  readonly pushed?: { readonly registry: string; readonly package: string; readonly topHash: string }
}

interface Revision {
  readonly topHash: string
  readonly message: string
  readonly metadata: { readonly bobbin: Readonly<Record<string, unknown>> }
}

const resolve = (reference: string) => runs.cli.json<Revision>('resolve', reference)

t.test('a run that ends well becomes a revision, with its hashes and its record', async t => {
  const out = join(folder, 'out')
  const run = (await runs.run('--host', ...mount, '--output', out, '--push-output', model, ...train)) as Pushed
  t.match(run, { exitCode: 0, pushed: { registry: `file://${folder}/models`, package: 'me/model' } })
  const { topHash, message, metadata } = await resolve(model)
  t.equal(topHash, run.pushed!.topHash)
  t.match(message, `sh train.sh ${data}: GIT_HASH=${commit} GIT_TREE=`)
  t.match(message, `QUILT_HASH=${written.topHash}`)
  t.match(metadata.bobbin, {
    runId: run.runId,
    exitCode: 0,
    hashes: { GIT_HASH: commit, QUILT_HASH: written.topHash },
    datasets: [`${written.registry}/${written.name}@${written.topHash}`],
    statement: statementOf(run),
  })
  const keys = (await runs.cli.text('ls', model, '-R')).trimEnd().split('\n')
  const record = ['reads.jsonl', 'run.json', 'statement.json', 'stderr.log', 'stdout.log', 'trace.json']
  t.same(keys, [...record.map(name => `.bobbin/${name}`), 'model'])
  t.equal(await runs.cli.text('cat', model, '.bobbin/stdout.log'), 'trained\n')

  await t.test('from which it can be made again, elsewhere', async t => {
    const elsewhere = new Runs(join(folder, 'elsewhere'))
    t.teardown(() => elsewhere.cli.try('stop', '--force'))
    mkdirSync(elsewhere.code, { recursive: true })
    const installed = join(folder, 'installed')
    await elsewhere.cli.text('install', model, installed)
    const again = await elsewhere.bobbin('reproduce', installed, ...ALLOW_HOST, ...ALLOW_CODE, '--json')
    t.equal(again.status, 0, again.stderr)
    t.match(JSON.parse(again.stdout), { equal: true, outputs: [{ path: 'model', change: 'same' }] })
  })

  await t.test('the next run is the next revision', async t => {
    // Without a folder of its own, outputs lie in the run's.
    const next = (await runs.run('--host', ...mount, '--push-output', model, ...train)) as Pushed
    t.not(next.pushed!.topHash, topHash)
    t.ok(existsSync(join(next.record, 'outputs/model')))
    t.same(
      (await runs.cli.rows<{ topHash: string }>('log', model)).map(row => row.topHash),
      [next.pushed!.topHash, topHash],
    )
    t.equal((await runs.cli.text('cat', `${model}@${topHash}`, '.bobbin/run.json')).includes(run.runId), true)
  })

  await t.test('and it may be pushed once more, to the same revision', async t => {
    const { status, stdout, stderr } = await runs.bobbin(
      'record',
      'push',
      run.runId,
      `${folder}/models/me/other`,
      '--json',
    )
    t.equal(status, 0, stderr)
    t.match(JSON.parse(stdout), { topHash, package: 'me/other' })
  })
})

t.test('what the run has written is pushed, all of it and nothing else that lies there', async t => {
  const out = join(folder, 'crowded')
  mkdirSync(join(out, 'old'), { recursive: true })
  writeFileSync(join(out, 'earlier'), '')
  writeFileSync(Buffer.concat([Buffer.from(`${out}/old/`), Buffer.from([0xff, 0xfe])]), 'no UTF-8')
  const script = `cd $BOBBIN_OUTPUT; mkdir -p a/b; echo model > .quiltignore; for name in a/b/c a-b model; do echo $name > $name; done`
  const target = `${folder}/models/me/crowded`
  const run = (await runs.run('--host', '--output', out, '--push-output', target, '--', 'sh', '-c', script)) as Pushed
  t.match(run, { exitCode: 0, pushed: { package: 'me/crowded' } })
  const keys = (await runs.cli.text('ls', target, '-R')).trimEnd().split('\n')
  t.same(
    keys.filter(key => !key.startsWith('.bobbin/')),
    ['.quiltignore', 'a/b/c', 'a-b', 'model'],
  )
  t.equal(await runs.cli.text('cat', target, 'a/b/c'), 'a/b/c\n')
})

t.test('a run that fails is not pushed, unless somebody wants it', async t => {
  const failing = `${folder}/models/me/failing`
  const run = await runs.bobbin('run', '--json', '--host', ...mount, '-e', 'EXIT=3', '--push-output', failing, ...train)
  t.equal(run.status, 3)
  const { runId } = JSON.parse(run.stdout) as RunAnswer
  t.match(run.stderr, `if you want it: bobbin record push ${runId} ${failing}`)
  t.equal((await runs.cli.try('resolve', failing)).status, 10)
  t.equal((await runs.bobbin('record', 'push', runId, failing)).status, 0)
  t.match((await resolve(failing)).metadata.bobbin, { exitCode: 3 })
})

t.test('a registry that cannot be pushed to is told before the run, and one that goes away behind it', async t => {
  const refused = await runs.bobbin('run', '--host', ...mount, '--push-output', `${model}:tag`, ...train)
  t.match(refused, { status: 2, stderr: /leave @ and : out/ })
  const blocked = join(folder, 'blocked')
  const script = `echo model > $BOBBIN_OUTPUT/model; echo no folder > ${blocked}`
  const run = await runs.bobbin(
    'run',
    '--json',
    '--host',
    '--push-output',
    `${blocked}/me/model`,
    '--',
    'sh',
    '-c',
    script,
  )
  t.not(run.status, 0, 'the push has failed')
  const answer = JSON.parse(run.stdout) as Pushed
  t.match(answer, { exitCode: 0 })
  t.equal(answer.pushed, undefined)
  const again = `bobbin record push ${answer.runId} ${blocked}/me/model`
  t.match(run.stderr, `the outputs are in ${answer.record}/outputs; to push them again: ${again}`)
  rmSync(blocked)
  t.equal((await runs.bobbin(...again.split(' ').slice(1))).status, 0)
  t.equal(await runs.cli.text('cat', `${blocked}/me/model`, 'model'), 'model\n')
})

t.test('workflow rules are looked at before the run, and followed by what is pushed (S44)', async t => {
  const registry = join(folder, 'ruled')
  const rules = join(registry, '.quilt/workflows')
  mkdirSync(rules, { recursive: true })
  writeFileSync(
    join(rules, 'config.yml'),
    `version: "1"
workflows:
  models: {name: models, handle_pattern: "^me/", is_message_required: true, metadata_schema: run}
  broken: {name: broken, entries_schema: nowhere}
schemas:
  run: {url: "file://${rules}/run.json"}
  nowhere: {url: "file://${rules}/nowhere.json"}
`,
  )
  writeFileSync(join(rules, 'run.json'), JSON.stringify({ required: ['bobbin'] }))
  const ran = join(folder, 'ran')
  const shell = ['--', 'sh', '-c', `touch ${ran}; echo model > $BOBBIN_OUTPUT/model`]
  const refused: readonly [string[], RegExp][] = [
    [['--push-output', `${registry}/me/model`], /a workflow has to be named with --workflow: models, broken/],
    [['--push-output', `${registry}/me/model`, '--workflow', 'usual'], /there is no workflow "usual"/],
    [['--push-output', `${registry}/me/model`, '--workflow', ''], /has to be named/],
    [['--push-output', `${registry}/you/model`, '--workflow', 'models'], /name does not fit/],
    [['--push-output', `${registry}/me/model`, '--workflow', 'broken'], /nowhere.json is not there/],
    [['--push-output', model, '--workflow', 'models'], /no .quilt\/workflows\/config.yml/],
    [['--workflow', 'models'], /--workflow is for --push-output/],
  ]
  for (const [words, reason] of refused)
    t.match(await runs.bobbin('run', '--host', ...words, ...shell), { status: 2, stderr: reason }, words.join(' '))
  t.notOk(existsSync(ran), 'nothing was run')

  const target = `${registry}/me/model`
  const run = (await runs.run('--host', '--push-output', target, '--workflow', 'models', ...shell)) as Pushed
  t.match(run, { exitCode: 0, pushed: { package: 'me/model' } })
  const manifest = readFileSync(join(registry, '.quilt/packages', run.pushed!.topHash), 'utf8')
  t.match(JSON.parse(manifest.split('\n')[0]!), { workflow: { id: 'models' } })

  const failing = await runs.bobbin(
    ...['run', '--json', '--host', '--push-output', target, '--workflow', 'models', '--', 'false'],
  )
  const { runId } = JSON.parse(failing.stdout) as RunAnswer
  const again = `bobbin record push ${runId} ${target} --workflow models`
  t.match(failing.stderr, again)
  t.match(await runs.bobbin('record', 'push', runId, target), { status: 2, stderr: /has to be named with --workflow/ })
  t.equal((await runs.bobbin(...again.split(' ').slice(1))).status, 0)
})

t.test('what is passed by name alone is in no record', async t => {
  const script = 'echo $SECRET $PLAIN > $BOBBIN_OUTPUT/model'
  const words = ['-e', 'SECRET', '-e', 'PLAIN=word', '-e', 'NO_SUCH_VARIABLE']
  const run = (await runs.run('--host', ...words, '--push-output', model, '--', 'sh', '-c', script)) as Pushed
  t.equal(readFileSync(join(run.record, 'outputs/model'), 'utf8'), 'a secret word\n')
  const { externalParameters } = statementOf(run).predicate.buildDefinition
  t.match(externalParameters, { env: { PLAIN: 'word' }, envNames: ['SECRET'] })
  for (const name of ['run.json', 'statement.json', 'trace.json'])
    t.notMatch(readFileSync(join(run.record, name), 'utf8'), 'a secret')
  t.equal((await runs.bobbin('reproduce', run.runId, ...ALLOW_HOST)).status, 0)
  const stranger = new Runs(join(folder, 'stranger'))
  t.teardown(() => stranger.cli.try('stop', '--force'))
  mkdirSync(stranger.code, { recursive: true })
  t.match(await stranger.bobbin('reproduce', run.record), {
    status: 2,
    stderr: /the run was given SECRET, .*: export SECRET/,
  })
  writeFileSync(join(folder, 'done'), '')
})
