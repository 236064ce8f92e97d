/** `bobbin run --scratch`: what a command writes above its data is in its record, and is no part of the data. */
import { createHash } from 'node:crypto'
import { appendFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { cannotMount, mountsBelow, run as runProgram, testFolder, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'
import { ALLOW_CODE, ALLOW_HOST, factsOf, Runs, readsOf, started, statementOf } from '../support/runs.js'

t.setTimeout(900_000)
const skip = cannotMount() || (process.getuid?.() !== 0 && 'needs root, for whom the kernel makes overlays')

const sha256 = (bytes: string | Buffer) => createHash('sha256').update(bytes).digest('hex')
const LARGE = noise(9 * 2 ** 20, 1)

t.test('what a run writes above its data is in its record', { skip }, async t => {
  const folder = testFolder(t)
  // The folder of tests may lie on an overlay, which takes no upper layer.
  t.equal((await runProgram('mount', ['-t', 'tmpfs', 'tmpfs', folder])).status, 0)
  t.teardown(() => runProgram('umount', ['-l', folder]))
  const runs = new Runs(folder)
  t.teardown(() => runs.cli.try('stop', '--force'))
  const { reference, topHash } = await writeRegistry(join(folder, 'registry'), 'test/small', {
    'images/large.bin': LARGE,
    'labels/a.txt': 'one',
    'labels/b.txt': 'two',
    'old/deep/c.txt': 'three',
    'old/d.txt': 'four',
    top: 'top',
    kept: 'kept',
  })
  await runs.commit({ 'train.sh': 'true' })
  const data = join(folder, 'data')
  const scripted = (script: string, ...flags: string[]) => [
    ...['--host', '--scratch', '--no-loader', '--mount', `${reference}:${data}`, ...flags],
    ...['--', 'sh', '-ec', `cd '${data}'; ${script}`],
  ]

  await t.test('files, and what was hidden of the package, by a list of its own (S168)', async t => {
    const process = started(
      runs.start(
        ...scripted(`
          cat labels/a.txt; echo cache > labels/labels.cache; mkdir own; echo own > own/file
          echo more >> labels/a.txt; rm labels/b.txt; chmod 600 kept
          printf x | dd of=images/large.bin bs=1 seek=5 conv=notrunc status=none
          rm -r old; mkdir old; echo new > old/e.txt
          rm top; mkdir top`),
      ),
    )
    t.equal(await process.ended, 0, process.stderr())
    const run = JSON.parse(process.stdout())
    const changed = Buffer.from(LARGE)
    changed[5] = 'x'.charCodeAt(0)
    const { written, mounts, problems, hidden } = factsOf(run)
    t.same(written, [
      {
        target: data,
        folder: join(run.record, 'scratch/0/upper'),
        files: [
          { path: 'images/large.bin', size: LARGE.length, sha256: sha256(changed), change: 'changed' },
          { path: 'kept', size: 4, sha256: sha256('kept'), change: 'copied' },
          { path: 'labels/a.txt', size: 8, sha256: sha256('onemore\n'), change: 'changed' },
          { path: 'labels/labels.cache', size: 6, sha256: sha256('cache\n'), change: 'added' },
          { path: 'old/e.txt', size: 4, sha256: sha256('new\n'), change: 'added' },
          { path: 'own/file', size: 4, sha256: sha256('own\n'), change: 'added' },
        ],
        filesMore: 0,
        bytesMore: 0,
        hidden: ['labels/b.txt', 'old/d.txt', 'old/deep/', 'top'],
        hiddenMore: 0,
      },
    ])
    t.equal(hidden, undefined)
    t.match(
      mounts,
      [{ topHash, target: data, scratch: { mountpoint: data, overlay: 'kernel' } }],
      'the data are what they were',
    )
    t.match(problems, [/changed 2 files of the package and hid 4 .*from then on it saw its own/])
    t.match(process.stderr(), /changed 2 files of the package and hid 4/)
    t.ok(readsOf(run).every(({ key }) => ['images/large.bin', 'kept', 'labels/a.txt'].includes(key)))
    const { subject, predicate } = statementOf(run)
    t.same(
      subject.map(({ name }: { name: string }) => name),
      ['reads.jsonl'],
      'they are no outputs',
    )
    t.equal(predicate.buildDefinition.externalParameters.scratch, true)
    t.match(predicate.runDetails.byproducts.at(-1), {
      name: 'written',
      annotations: { files: 6, changed: 2, hidden: 4 },
    })
    t.same(
      mountsBelow(folder).filter(({ mountpoint }) => mountpoint !== folder),
      [],
      'nothing stays mounted',
    )
    t.match(await runs.bobbin('runs', run.runId), {
      stdout: /written {2}6 files above .*data, 4 of the package hidden/,
    })

    t.match(await runs.bobbin('record', 'verify', run.runId), { status: 0, stdout: /is sound/ })
    appendFileSync(join(run.record, 'scratch/0/upper/own/file'), 'later')
    t.match(await runs.bobbin('record', 'verify', run.runId), {
      status: 13,
      stdout: /own\/file above .* has changed since/,
    })
    rmSync(join(run.record, 'scratch/0/upper'), { recursive: true })
    t.match(await runs.bobbin('record', 'verify', run.runId), {
      status: 0,
      stdout: /6 of the files that it wrote above its data/,
    })
  })

  await t.test('reproduce begins with an empty scratch folder (S168)', async t => {
    const script = 'test ! -e mine; echo x > mine; cat labels/a.txt > "$BOBBIN_OUTPUT/result"'
    const run = await runs.run(...scripted(script, '--output', join(folder, 'out')))
    t.equal(run.exitCode, 0)
    t.equal(factsOf(run).problems, undefined, 'a file that was added is no problem')
    const again = await runs.bobbin('reproduce', run.runId, ...ALLOW_HOST, ...ALLOW_CODE, '--json')
    t.equal(again.status, 0, again.stderr)
    t.match(factsOf(JSON.parse(again.stdout)).written, [{ files: [{ path: 'mine' }] }])
  })

  await t.test('a run that was killed has what it wrote in its record, and nothing stays mounted (S169)', async t => {
    const process = started(runs.start(...scripted('rm top; echo x > mine; echo ready; exec sleep 1000')))
    await until('the command runs', () => process.stderr().includes('ready'))
    process.process.kill('SIGKILL')
    await process.ended
    t.ok(mountsBelow(folder).some(({ type }) => type === 'overlay'))
    const { runId } = runs.latestFacts()!
    t.equal((await runs.bobbin('runs', runId)).status, 0)
    const facts = runs.latestFacts()!
    t.match(facts, { wasAbandoned: true, written: [{ hidden: ['top'], files: [{ path: 'mine', change: 'added' }] }] })
    t.same(
      mountsBelow(folder).filter(({ mountpoint }) => mountpoint !== folder),
      [],
    )
    t.match(await runs.bobbin('record', 'verify', runId), { status: 0 })
  })

  await t.test('an overlay that somebody takes away meanwhile is in the record (S169)', async t => {
    const process = started(
      runs.start(...scripted(`echo x > mine; echo ready; cd /; until [ -e '${folder}/go' ]; do sleep 0.1; done`)),
    )
    await until('the command runs', () => process.stderr().includes('ready'))
    t.match(await runs.bobbin('umount', data), { status: 11, stderr: /belongs to the run/ })
    t.equal((await runProgram('umount', ['-l', data])).status, 0)
    writeFileSync(join(folder, 'go'), '')
    t.equal(await process.ended, 0, process.stderr())
    t.match(runs.latestFacts()!.problems, [
      /the overlay at .*data ended during the run/,
      /what the command deleted at .* is not known/,
    ])
    t.same(
      mountsBelow(folder).filter(({ mountpoint }) => mountpoint !== folder),
      [],
    )
  })
})
