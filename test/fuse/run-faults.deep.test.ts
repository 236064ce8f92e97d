/** What goes wrong under `bobbin run --host`: full disks, processes that die, signals, packages that are gone, hostile names. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { RunFolder } from '../../cli/record/run-folder.js'
import { type SidecarOptions, startSidecar } from '../../cli/run/sidecar.js'
import { AS_USERS_DO, runProgram } from '../support/cli.js'
import { mountsBelow, testFolder, until } from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { bobbinPath } from '../support/parts.js'
import { parentOf, processesWith } from '../support/processes.js'
import {
  ALLOW_CODE,
  ALLOW_HOST,
  exitOf,
  factsOf,
  isComplete,
  type RunAnswer,
  Runs,
  readsOf,
  started,
} from '../support/runs.js'
import { writeSamples } from '../support/samples.js'
import { endUnlessMounts } from '../support/skips.js'
import { smallDisk } from '../support/small-disk.js'

t.setTimeout(600_000)
endUnlessMounts(t)

const folder = testFolder(t)
const runs = new Runs(folder)
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 12)
await runs.commit({ 'code.txt': 'the code' })
const data = join(folder, 'data')
const mount = ['--mount', `${written.reference}:${data}`]
const at = (i: number) => join(data, `train/${String(i).padStart(6, '0')}.jpg`)
const shell = (script: string) => ['--', 'sh', '-c', script]

const fill = (path: string) => `head -c 64M /dev/zero > '${path}'`
/** Neither the mounts nor the processes of a run. */
const nothingIsLeft = (t: Test, of: Runs, runId: string) => {
  t.same(mountsBelow(of.folder), [])
  t.same(processesWith('BOBBIN_RUN', runId), [], 'no process of it goes on')
}

t.test("outputs that fill their disk are the command's problem, and the record tells of it (S52)", async t => {
  const disk = smallDisk(t, 2)
  if (disk === undefined) return
  const script =
    `cat ${at(1)} > /dev/null; echo small > $BOBBIN_OUTPUT/a; ${fill('$BOBBIN_OUTPUT/big')} 2>/dev/null; exit 3`.replaceAll(
      "'",
      '"',
    )
  const run = await runs.run('--host', ...mount, '--output', join(disk, 'out'), ...shell(script))
  t.equal(run.exitCode, 3)
  t.same(
    run.outputs.map(({ path }) => path),
    ['a', 'big'],
  )
  t.match(exitOf(run), { code: 3, killed: false, problems: [/no space is left in .*out/] })
  t.equal(isComplete(run), true, 'its reads are whole')
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
})

t.test('a run whose outputs would find no room at all does not start', async t => {
  const disk = smallDisk(t, 1)
  if (disk === undefined) return
  const [ran, out] = [join(folder, 'ran'), join(disk, 'out')]
  await runProgram('sh', ['-c', fill(join(disk, 'hog'))])
  const full = await runs.bobbin('run', '--host', '--output', out, ...shell(`touch ${ran}`))
  t.match(full, { status: 1, stderr: /no space left on the device of .*out/ })
  t.notOk(existsSync(ran))
  truncateSync(join(disk, 'hog'), 2 ** 19)
  const run = await runs.bobbin('run', '--host', '--output', out, ...shell(`touch ${ran}`))
  t.match(run, { status: 0, stderr: /only 512 KiB are free for outputs/ }, 'little room is worth a word')
  t.ok(existsSync(ran))
})

t.test('a record that does not fit on its disk is said, and made when there is room', async t => {
  const disk = smallDisk(t, 2)
  if (disk === undefined) return
  const full = new Runs(join(folder, 'full'), { BOBBIN_STATE: join(disk, 'state') })
  t.teardown(() => full.cli.try('stop', '--force'))
  await full.commit({ 'code.txt': 'the code' })
  const hog = join(disk, 'hog')
  const own = ['--mount', `${written.reference}:${join(full.folder, 'data')}`]
  const read = `cat ${join(full.folder, 'data/train/000002.jpg')} > /dev/null`
  const { status, stderr, stdout } = await full.bobbin(
    'run',
    '--host',
    ...own,
    ...shell(`${read}; ${fill(hog)}; exit 4`),
  )
  t.equal(status, 1, stderr)
  t.equal(stdout, '')
  t.match(stderr, /the command ended with 4.*no space left on the device/s)
  t.notMatch(stderr, /this is a bug/)
  const [runId] = readdirSync(join(disk, 'state/runs'))
  nothingIsLeft(t, full, runId!)
  const refused = await full.bobbin('run', '--host', ...own, ...shell('true'))
  t.equal(refused.status, 1, 'nor is there room to start another one')
  t.match(refused.stderr, /no space left on the device/)
  rmSync(hog)
  const rows = await full.cli.rows<RunAnswer & { state: string }>('runs')
  t.match(rows, [{ runId, state: 'killed' }])
  t.same(
    readsOf(rows[0]!).map(({ key }) => key),
    ['train/000002.jpg'],
  )
  t.equal((await full.bobbin('record', 'verify', runId!)).status, 0)
})

t.test('outputs that cannot be read are named, and the record is there', async t => {
  const out = join(folder, 'unreadable')
  // A name that is no UTF-8, as tar and old cameras leave them.
  const script = `echo a > $BOBBIN_OUTPUT/a; python3 -c "import os; open(os.environ['BOBBIN_OUTPUT'].encode() + b'/\\xff.bin', 'w').write('b')"; ln -s /etc $BOBBIN_OUTPUT/link; mkfifo $BOBBIN_OUTPUT/pipe`
  const run = await runs.run('--host', '--output', out, ...shell(script))
  t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  t.same(
    run.outputs.map(({ path }) => path),
    ['a'],
  )
  t.match(exitOf(run), { problems: [/output .*\.bin/] })
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
})

t.test('a signal while outputs are hashed ends that, and the record is made up for (S52)', async t => {
  const out = join(folder, 'huge')
  // More than can be hashed before the test has seen it; it takes no room.
  const script = `cat ${at(4)} > /dev/null; truncate -s 1T $BOBBIN_OUTPUT/huge`
  const child = started(runs.start('--host', ...mount, '--output', out, ...shell(script)))
  const latest = () => join(runs.state, 'runs', readdirSync(join(runs.state, 'runs')).sort().at(-1)!)
  await until('its outputs are hashed', () => existsSync(join(out, 'huge')) && mountsBelow(folder).length === 0, 60_000)
  const record = latest()
  await until('the command is over', () => factsOf({ record }).exitCode === 0)
  child.process.kill('SIGINT')
  t.equal(await child.ended, 130, child.stderr())
  const { runId } = factsOf({ record })
  nothingIsLeft(t, runs, runId)
  truncateSync(join(out, 'huge'), 5)
  const rows = await runs.cli.rows<RunAnswer & { state: string }>('runs', runId)
  t.match(rows, [{ state: 'exit 0', exitCode: 0, outputs: [{ path: 'huge', size: 5 }] }])
  t.match(exitOf({ record }), { code: 0, killed: false, problems: [/made later/] })
  t.equal((await runs.bobbin('record', 'verify', runId)).status, 0)
})

t.test('a signal while the manifest is on its way leaves no mount of those before it', async t => {
  const source = await startHeldServer()
  t.teardown(() => source.stop())
  const far = new Runs(join(folder, 'far'), source.env)
  t.teardown(() => far.cli.try('stop', '--force'))
  await far.commit({ 'code.txt': 'the code' })
  source.hold()
  const near = ['--mount', `${written.reference}:${join(far.folder, 'near')}`]
  const held = ['--mount', `s3://held/test/far@${'1'.repeat(64)}:${join(far.folder, 'held')}`]
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    const child = started(far.start('--host', ...near, ...held, ...shell('true')))
    await until('it asks the registry', () => source.waiting > 0, 30_000)
    t.equal(mountsBelow(far.folder).length, 1)
    child.process.kill(signal)
    t.equal(await child.ended, code, child.stderr())
    t.same(readdirSync(join(far.state, 'runs')), [])
    t.same(mountsBelow(far.folder), [])
  }
})

t.test('a run that is killed while it is prepared is cleaned up by the next look at runs', async t => {
  const source = await startHeldServer()
  t.teardown(() => source.stop())
  const far = new Runs(join(folder, 'killed-early'), source.env)
  t.teardown(() => far.cli.try('stop', '--force'))
  await far.commit({ 'code.txt': 'the code' })
  source.hold()
  const [first, second] = [join(far.folder, 'first'), join(far.folder, 'second')]
  const never = `s3://held/test/far@${'1'.repeat(64)}:${second}`
  const child = started(
    far.start('--host', '--mount', `${written.reference}:${first}`, '--mount', never, ...shell('true')),
  )
  await until('the first one is mounted', () => mountsBelow(far.folder).length === 1 && source.waiting > 0, 30_000)
  child.process.kill('SIGKILL')
  await child.ended
  t.equal(mountsBelow(far.folder).length, 1)
  source.release()
  const [row] = await far.cli.rows<{ runId: string; state: string }>('runs')
  t.equal(row?.state, 'killed')
  nothingIsLeft(t, far, row!.runId)
  t.notOk(existsSync(first), 'nor the mountpoint that it has made')
})

t.test("nothing is done because a stranger's record says so (S53)", async t => {
  const run = await runs.run('--host', ...mount, ...shell(`cat ${at(1)} > /dev/null`))
  const [stranger, victim, hit] = ['stranger', 'victim', 'hit'].map(name => join(folder, name))
  mkdirSync(victim!)
  cpSync(run.record, stranger!, { recursive: true })
  const { finishedOn: _, exitCode: __, ...unfinished } = factsOf(run)
  const victims = unfinished.mounts.map(one => ({ ...one, mountpoint: victim! }))
  const edit = (facts: object) => writeFileSync(join(stranger!, 'run.json'), JSON.stringify(facts))
  const verbs = [['record', 'verify'], ['record', 'push'], ['reproduce'], ['runs']]
  for (const [facts, codes, words] of [
    [{ ...unfinished, pid: 2 ** 22 - 1, mounts: victims }, [2, 0], /not over yet|running/],
    [{ ...unfinished, engine: { name: `./${hit}`, version: '1' } }, [13], /run.json is not a record/],
    [
      { ...unfinished, outputs: [{ path: '../../x', size: 1, sha256: 'a'.repeat(64) }] },
      [13],
      /run.json is not a record/,
    ],
    [{ ...unfinished, mounts: [{ ...victims[0], topHash: '--x' }] }, [13], /run.json is not a record/],
  ] as const) {
    edit(facts)
    for (const verb of verbs) {
      const target = verb[1] === 'push' ? [`file://${folder}/never/test/model`] : []
      const { status, stdout, stderr } = await runs.bobbin(...verb, stranger!, ...target)
      t.ok(
        codes.some(code => code === status),
        `${verb.join(' ')}: ${status} ${stderr}`,
      )
      t.match(stdout + stderr, words)
    }
  }
  t.ok(existsSync(victim!), 'a folder stays')
  edit({ ...factsOf(run), finishedOn: run.runId })
  t.equal((await runs.bobbin('record', 'verify', stranger!)).status, 13)
})

t.test(
  "a stranger's bare process starts only for who allows it, and its record has what it was given (S76, S77)",
  async t => {
    const hit = join(folder, 'allowed')
    const run = await runs.run('--host', '--no-code', '-e', 'MODE=2', ...mount, ...shell('echo "$MODE" > "$0"'), hit)
    const record = join(folder, 'sent')
    cpSync(run.record, record, { recursive: true })
    const facts = factsOf(run)
    rmSync(hit)
    const count = () => readdirSync(join(runs.state, 'runs')).length
    const before = count()
    const refused = await runs.bobbin('reproduce', record)
    t.equal(refused.status, 2)
    for (const words of ['MODE=2 sh -c', `${written.topHash} mounted at ${data}`, '--allow-host'])
      t.match(refused.stderr, words)
    t.match(await runs.bobbin('reproduce', record, ...ALLOW_CODE), { status: 2, stderr: /--allow-host/ })
    t.match(await runs.bobbin('reproduce', record, '--allow-all'), { status: 2, stderr: /unknown option/ })
    t.notOk(existsSync(hit), 'nothing was started')
    t.equal(count(), before)
    t.same(mountsBelow(folder), [])
    const again = await runs.bobbin('reproduce', record, ...ALLOW_HOST, '--json')
    t.equal(again.status, 0, again.stderr)
    t.match(again.stderr, /allowed: host: MODE=2 sh -c/)
    t.equal(readFileSync(hit, 'utf8'), '2\n')
    const { command, env, options, mounts, cwd } = factsOf(JSON.parse(again.stdout) as RunAnswer)
    t.same({ command, env, options, cwd }, { command: facts.command, env: { MODE: '2' }, options: [], cwd: facts.cwd })
    t.same(
      mounts.map(one => [one.topHash, one.target, one.asked]),
      [[written.topHash, data, `${written.reference}:${data}`]],
    )
  },
)

t.test('a record is the same on another machine, whose runs are left alone', async t => {
  const run = await runs.run('--host', ...mount, ...shell(`cat ${at(1)} > /dev/null`))
  const [command, ...before] = AS_USERS_DO
  const words = [command!, ...before, process.execPath, bobbinPath, 'record', 'verify', run.record]
  const env = { ...process.env, BOBBIN_STATE: runs.state, BOBBIN_CACHE: runs.cli.cacheDir }
  const there = ['--map-root-user', '--uts', 'sh', '-c', 'hostname elsewhere && exec "$@"', 'sh', ...words]
  const { status, stderr } = await runProgram('unshare', there, { env })
  t.equal(status, 0, stderr)

  const { finishedOn: _, exitCode: __, ...unfinished } = factsOf(run)
  const text = JSON.stringify({ ...unfinished, host: 'elsewhere', pid: 2 ** 22 - 1 })
  writeFileSync(join(run.record, 'run.json'), text)
  const rows = await runs.cli.rows<{ runId: string; state: string }>('runs')
  t.equal(rows.find(({ runId }) => runId === run.runId)?.state, 'running on elsewhere')
  t.equal(readFileSync(join(run.record, 'run.json'), 'utf8'), text)
  rmSync(run.record, { recursive: true })
})

t.test('whoever does not read on ends what is shown, and neither the run nor its record (S52)', async t => {
  const lines = 200_000
  const script = `seq ${lines}; seq ${lines} >&2; cat ${at(7)} > /dev/null; exit 6`
  for (const closed of [['stdout'], ['stderr'], ['stdout', 'stderr']] as const) {
    const child = runs.startShown('--host', ...mount, ...shell(script))
    for (const name of ['stdout', 'stderr'] as const) {
      if (closed.includes(name as never)) child[name].once('data', () => child[name].destroy())
      else child[name].resume()
    }
    t.equal(await new Promise(resolve => child.once('exit', resolve)), 6, closed.join())
    const facts = runs.latestFacts()!
    const record = join(runs.state, 'runs', facts.runId)
    t.match(exitOf({ record }), { code: 6, killed: false })
    for (const name of ['stdout', 'stderr'])
      t.match(readFileSync(join(record, `${name}.log`), 'utf8'), new RegExp(`^${lines}$`, 'm'), `${name}.log is whole`)
    t.same(
      readsOf({ record }).map(({ key }) => key),
      ['train/000007.jpg'],
    )
    nothingIsLeft(t, runs, facts.runId)
    t.equal((await runs.bobbin('record', 'verify', facts.runId)).status, 0)
  }
})

t.test('a run ends with its command, and not with what that has left in the background', async t => {
  const bare = ['--host', '--no-code', '--no-loader']
  const quiet = 'echo error >&2; (sleep 0.2; echo behind; exec sleep 60) & seq 100000; exit 3'
  const loud = 'echo error >&2; timeout 60 yes 2> /dev/null & sleep 0.1; echo last; exit 4'
  for (const [script, code, kept] of [
    [quiet, 3, ['100000', 'behind']],
    [loud, 4, ['y', 'last']],
  ] as const) {
    const begun = Date.now()
    const run = await runs.run(...bare, ...shell(script))
    t.equal(run.exitCode, code)
    t.ok(Date.now() - begun < 50_000)
    const lines = new Set(readFileSync(join(run.record, 'stdout.log'), 'utf8').split('\n'))
    for (const line of kept) t.ok(lines.has(line), line)
    t.equal(readFileSync(join(run.record, 'stderr.log'), 'utf8'), 'error\n')
  }
})

t.test('a mount that dies under a run is noticed, and nothing hangs (S50)', async t => {
  const go = join(folder, 'go')
  const script = `cat ${at(5)} > /dev/null; echo ready; while ! test -e ${go}; do sleep 0.05; done; cat ${at(6)} > /dev/null`
  const child = started(runs.start('--host', ...mount, ...shell(script)))
  await until('it runs', () => child.stderr().includes('ready'), 60_000)
  const { daemon } = await runs.cli.json<{ daemon: { pid: number } }>('status')
  process.kill(parentOf(daemon.pid), 'SIGKILL')
  writeFileSync(go, '')
  t.equal(await child.ended, 1, 'what the command ends with')
  const run = JSON.parse(child.stdout()) as RunAnswer
  t.match(child.stderr(), /bobbin: .*mount.* ended during the run/)
  t.equal(isComplete(run), false)
  t.match(exitOf(run), { code: 1, killed: false, problems: [/mount.* ended during the run/] })
  nothingIsLeft(t, runs, run.runId)
  t.notOk(existsSync(data))
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
  const next = await runs.run('--host', ...mount, ...shell(`cat ${at(6)} > /dev/null`))
  t.equal(next.exitCode, 0, 'and the next run has a mount again')
})

t.test("a run's data is not taken away by mistake, and whoever looks at the run sees that it was (S52)", async t => {
  const go = join(folder, 'taken')
  const script = `echo ready >&2; while ! test -e ${go}; do sleep 0.1; done; ls ${data}`
  const child = started(runs.start('--host', ...mount, ...shell(script)))
  await until('it runs', () => child.stderr().includes('ready'))
  for (const verb of [['umount', data], ['stop']]) {
    const { status, stderr } = await runs.bobbin(...verb)
    t.equal(status, 11, stderr)
    t.match(stderr, /belongs to the run .* under way/)
  }
  t.equal((await runs.bobbin('umount', '--force', data)).status, 0)
  writeFileSync(go, '')
  t.equal(await child.ended, 0)
  const { runId } = JSON.parse(child.stdout()) as RunAnswer
  t.match((await runs.bobbin('runs')).stdout, new RegExp(`${runId} .*exit 0 !`))
  const shown = (await runs.bobbin('runs', runId)).stdout
  t.match(shown, /problem {2}the mount .* ended during the run/)
  t.match(shown, /reads {4}some may be missing/)
  const verified = await runs.bobbin('record', 'verify', runId)
  t.equal(verified.status, 0, verified.stderr)
  t.match(verified.stdout, /is sound.*\n.*not signed.*\n.*reads may be missing.*\n.*the mount .* ended/)
})

t.test('a loader that dies under a run is noticed: what it delivered is perhaps not written down', async t => {
  // By its socket, which nobody else has.
  const script = `import os, signal, socket, struct
one = socket.socket(socket.AF_UNIX)
one.connect(os.environ['BOBBIN_SIDECAR'][5:])
pid = struct.unpack('iii', one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
os.kill(pid, signal.SIGKILL)
try:
    one.recv(1)
except ConnectionResetError:
    pass`
  const run = await runs.run('--host', '--', 'python3', '-c', script)
  t.equal(run.exitCode, 0, readFileSync(join(run.record, 'stderr.log'), 'utf8'))
  t.match(exitOf(run), { problems: [/loader ended during the run/] })
  t.equal(isComplete(run), false)
  nothingIsLeft(t, runs, run.runId)
})

t.test('a loader that does not stop is killed, and a run waits for it no longer', async t => {
  const run = RunFolder.create(runs.state)
  t.teardown(() => rmSync(run.path, { recursive: true }))
  const { signal } = new AbortController()
  const sidecar = await startSidecar(run, runs.cli.cacheDir, [], signal, { stopMs: 300 })
  const { stdout } = await runProgram('pgrep', ['--full', sidecar.socket])
  process.kill(Number(stdout), 'SIGSTOP')
  t.equal(await sidecar.stop(), false, 'what it delivered is perhaps not written down')
  nothingIsLeft(t, runs, run.runId)
})

t.test('startSidecar gives the loader the settings that it is given', async t => {
  const uncached = await writeSamples(join(folder, 'uncached'), 4, { name: 'test/uncached' })
  const ask = async (name: string, options: SidecarOptions) => {
    const run = RunFolder.create(runs.state)
    t.teardown(() => rmSync(run.path, { recursive: true }))
    const { registry, name: packageName, topHash } = uncached
    const mounts = [{ registry, package: packageName, topHash }]
    const sidecar = await startSidecar(run, runs.cli.cacheDir, mounts, new AbortController().signal, options)
    const body = JSON.stringify({ package: name })
    const line = ['-sS', '--unix-socket', sidecar.socket, '-H', 'content-type: application/json', '-d', body]
    const { stdout } = await runProgram('curl', [...line, 'http://loader/v1/plans'])
    t.equal(await sidecar.stop(), true)
    const log = readFileSync(run.file('loader.log'), 'utf8')
    return { ...(JSON.parse(stdout) as { readonly planId?: string; readonly detail?: string }), log }
  }
  const offline = await ask(uncached.reference, { offline: true, ioTimeoutMs: 5000 })
  t.match(offline.log, /offline: the manifest/)
  const named = await ask(`test/uncached@${uncached.topHash}`, { registry: uncached.registry })
  t.ok(named.planId, named.detail ?? 'a plan')
})

t.test('a line of deliveries that a full disk has cut is lost, and the record is there', async t => {
  const script = `
import json, os, subprocess, time
def ask(path, *more):
    socket = os.environ['BOBBIN_SIDECAR'][5:]
    subprocess.run(['curl', '-sSf', '-o', '/dev/null', '--unix-socket', socket, 'http://loader' + path, *more], check=True)
ask('/v1/plans', '-H', 'content-type: application/json', '-d', json.dumps({'package': '${written.reference}'}))
ask('/v1/p/${written.topHash}/train/000003.cls')
print('ready', flush=True)
time.sleep(600)`
  const child = started(runs.start('--host', ...mount, '--', 'python3', '-c', script))
  t.teardown(() => child.process.kill())
  await until('it runs', () => child.stderr().includes('ready'), 60_000)
  const record = join(runs.state, 'runs', runs.latestFacts()!.runId)
  const path = join(record, 'deliveries.ndjson')
  await until('it is written down', () => existsSync(path) && readFileSync(path, 'utf8').endsWith('\n'))
  const line = readFileSync(path, 'utf8')
  writeFileSync(path, `${line}${line.slice(0, 40)}${line}${line}`)
  child.process.kill('SIGTERM')
  t.equal(await child.ended, 143, child.stderr())
  t.same(
    readsOf({ record }).map(({ key, count }) => [key, count]),
    [['train/000003.cls', 2]],
  )
  t.equal(isComplete({ record }), false)
})

t.test('a record whose package is gone is told at once, and one that is cached is still checked', async t => {
  const gone = await writeSamples(join(folder, 'gone'), 4, { name: 'test/gone' })
  const run = await runs.run('--host', '--mount', `${gone.reference}:${data}`, ...shell(`cat ${at(1)} > /dev/null`))
  rmSync(gone.manifestPath)
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0, 'the cache has it')
  const elsewhere = new Runs(join(folder, 'elsewhere'))
  t.teardown(() => elsewhere.cli.try('stop', '--force'))
  mkdirSync(elsewhere.code, { recursive: true })
  for (const verb of [
    ['record', 'verify'],
    ['reproduce', ...ALLOW_HOST, ...ALLOW_CODE],
  ]) {
    const { status, stderr } = await elsewhere.bobbin(...verb, run.record)
    t.equal(status, 10, stderr)
    t.match(stderr, gone.topHash.slice(0, 12))
  }
  t.same(readdirSync(join(elsewhere.state, 'runs')), [], 'no run is left of it')
  t.same(mountsBelow(elsewhere.folder), [])
})

t.test('names that look like options of git or of a program are names', async t => {
  const hit = join(folder, 'hit')
  const hostile = `--upload-pack=touch ${hit}`
  const refused: readonly [string[], number, RegExp][] = [
    [['--host', '--mount', `--privileged:${data}`, ...shell('true')], 2, /--privileged/],
    [['--host', '--mount', `-v/:/host`, ...shell('true')], 2, /-v/],
    [['--host', '--mount', `s3://bucket/--upload-pack=x/y:${data}`, ...shell('true')], 2, /upload-pack/],
    [['--host', '--mount', `s3://bucket/a/b\nc:${data}`, ...shell('true')], 2, /a\/b/],
    [['--host', `--code=${hostile}`, ...shell('true')], 2, /not in a git repository/],
    [['--host', '--no-code', '--', '--privileged'], 2, /cannot start --privileged/],
    [['--host', '--no-code', '--', 'a\nb'], 2, /cannot start/],
    [['--engine', '--privileged', 'local:1', 'true'], 2, /engine/],
  ]
  for (const [args, code, words] of refused) {
    const { status, stderr } = await runs.bobbin('run', ...args)
    t.equal(status, code, `${args.join(' ')}: ${stderr}`)
    t.match(stderr, words)
    t.notMatch(stderr, /this is a bug/)
  }
  t.same(mountsBelow(folder), [])

  const odd = join(folder, '-v', 'a,b "c"\n')
  const run = await runs.run(
    '--host',
    '--mount',
    `${written.reference}:${odd}`,
    ...shell('cat "$0"/train/000001.cls'),
    odd,
  )
  t.equal(run.exitCode, 0, 'a bare process may have any path')
  t.same(mountsBelow(folder), [])

  // A record may come from anybody; what git is told stands in it.
  const other = join(folder, 'other')
  await runProgram('git', ['clone', '--quiet', runs.code, other])
  for (const remote of [hostile, `ext::sh -c touch% ${hit}`]) {
    await runProgram('git', ['-C', other, 'config', 'remote.origin.url', remote])
    const made = await runs.run('--host', '--code', other, ...shell('true'))
    const path = join(made.record, 'run.json')
    const facts = factsOf(made)
    const edited = (code: object) =>
      writeFileSync(path, JSON.stringify({ ...facts, code: { ...facts.code, folder: '/nowhere', ...code } }))
    // One that is not in the repository of this folder either.
    edited({ commit: 'f'.repeat(40) })
    const cloned = await runs.bobbin('reproduce', made.record, ...ALLOW_HOST, ...ALLOW_CODE)
    t.equal(cloned.status, 10, cloned.stderr)
    edited({ remote: other, commit: '--orphan=x' })
    const checkedOut = await runs.bobbin('reproduce', made.record, ...ALLOW_HOST, ...ALLOW_CODE)
    t.equal(checkedOut.status, 13, checkedOut.stderr)
    t.match(checkedOut.stderr, /not a record of a run/)
  }
  t.notOk(existsSync(hit), 'nothing of it was run')
})
