/** What goes wrong under `bobbin run` with a real engine: signals, processes that die, images that are gone, hostile names. */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { runProgram } from '../support/cli.js'
import { mountsBelow, testFolder, until } from '../support/daemon.js'
import { startDocker } from '../support/docker.js'
import { startHeldServer } from '../support/held-server.js'
import { parentOf, processesWith } from '../support/processes.js'
import { ALLOW_CODE, exitOf, isComplete, type RunAnswer, Runs, started } from '../support/runs.js'
import { writeSamples } from '../support/samples.js'
import { smallDisk } from '../support/small-disk.js'

t.setTimeout(600_000)

const docker = await startDocker(t)
const folder = testFolder(t)
const runs = new Runs(folder, docker.env)
t.teardown(() => runs.cli.try('stop', '--force'))
const written = await writeSamples(join(folder, 'registry'), 12)
await runs.commit({ 'code.txt': 'the code' })
const mount = ['--mount', `${written.reference}:/data`]
const network = ['--network', 'none']
await docker.image('local:1', 'local')
const shell = (script: string) => ['local:1', 'sh', '-c', script]
const latest = (of: Runs) => readdirSync(join(of.state, 'runs')).sort().at(-1)

/** No container, no mount, no loader. */
const nothingIsLeft = async (t: Test, of: Runs, runId?: string) => {
  await until('no container is left', async () => (await docker.run('ps', '--all', '--quiet')) === '')
  t.same(mountsBelow(of.folder), [])
  if (runId !== undefined) t.same(processesWith('BOBBIN_RUN', runId), [])
}

t.test('outputs that fill their disk under a container: its exit code, and the record tells of it (S52)', async t => {
  const disk = smallDisk(t, 2)
  if (disk === undefined) return
  const script = 'head -c 64000000 /dev/zero > $BOBBIN_OUTPUT/big; exit 3'
  const run = await runs.run(...mount, ...network, '--output', join(disk, 'out'), ...shell(script))
  t.equal(run.exitCode, 3)
  t.match(readFileSync(join(run.record, 'stderr.log'), 'utf8'), /head: .*error/i)
  t.match(exitOf(run), { code: 3, killed: false, problems: [/no space is left in .*out/] })
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
})

t.test('an image that its registry has lost since is missed by its digest, and nothing is started', async t => {
  const name = `${docker.registry}/team/lost:v1`
  const push = async (text: string) => {
    await docker.image(name, text)
    await docker.run('push', '--quiet', name)
  }
  await push('first')
  const run = await runs.run(...mount, ...network, name, 'cat', '/which')
  t.equal(run.exitCode, 0)
  await push('second')
  await docker.run('image', 'rm', '--force', `${docker.registry}/team/lost@${run.imageDigest}`)
  await docker.run('image', 'prune', '--force', '--all')
  await docker.image('local:1', 'local')
  // The tag goes on; what it meant is gone.
  await docker.forget('team/lost', run.imageDigest!)
  const before = latest(runs)
  const { status, stderr } = await runs.bobbin('reproduce', run.runId)
  t.equal(status, 10, stderr)
  t.match(stderr, run.imageDigest!)
  t.equal(latest(runs), before, 'no run was made')
  await nothingIsLeft(t, runs)
})

t.test('a record whose package is gone starts no container', async t => {
  const gone = await writeSamples(join(folder, 'gone'), 4, { name: 'test/gone' })
  const run = await runs.run('--mount', `${gone.reference}:/data`, ...network, ...shell('cat /data/train/000001.cls'))
  t.equal(run.exitCode, 0)
  rmSync(gone.manifestPath)
  const elsewhere = new Runs(join(folder, 'elsewhere'), docker.env)
  t.teardown(() => elsewhere.cli.try('stop', '--force'))
  mkdirSync(elsewhere.code, { recursive: true })
  for (const verb of [
    ['record', 'verify'],
    ['reproduce', ...ALLOW_CODE],
  ]) {
    const { status, stderr } = await elsewhere.bobbin(...verb, run.record)
    t.equal(status, 10, stderr)
    t.match(stderr, gone.topHash.slice(0, 12))
  }
  t.same(readdirSync(join(elsewhere.state, 'runs')), [])
  await nothingIsLeft(t, elsewhere)
})

t.test('a signal ends each phase, and leaves no container, mount or loader (S52)', async t => {
  await t.test('while the engine is asked', async t => {
    const socket = join(folder, 'mute.sock')
    let asked = 0
    const server = createServer(() => asked++).listen(socket)
    t.teardown(() => server.close())
    const mute = new Runs(folder, { DOCKER_HOST: `unix://${socket}` })
    const before = latest(mute)
    const child = started(mute.start(...mount, '--engine', 'docker', ...shell('true')))
    await until('the engine is asked', () => asked > 0, 30_000)
    child.process.kill('SIGINT')
    t.equal(await child.ended, 130, child.stderr())
    t.equal(latest(mute), before)
  })

  await t.test('while the image is pulled', async t => {
    let asked = 0
    const server = createServer(() => asked++)
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    t.teardown(() => server.close())
    const address = server.address()
    const port = typeof address === 'object' ? address!.port : 0
    const before = latest(runs)
    const child = started(runs.start(...mount, `localhost:${port}/never:1`, 'true'))
    await until('the registry is asked', () => asked > 0, 30_000)
    child.process.kill('SIGINT')
    t.equal(await child.ended, 130, child.stderr())
    t.notMatch(child.stderr(), /this is a bug/)
    t.equal(latest(runs), before)
    await nothingIsLeft(t, runs)
  })

  await t.test('while it mounts', async t => {
    const source = await startHeldServer()
    t.teardown(() => source.stop())
    const far = new Runs(join(folder, 'far'), { ...docker.env, ...source.env })
    t.teardown(() => far.cli.try('stop', '--force'))
    await far.commit({ 'code.txt': 'the code' })
    source.hold()
    const held = ['--mount', `s3://held/test/far@${'1'.repeat(64)}:/far`]
    const child = started(far.start(...mount, ...held, ...shell('true')))
    await until('it asks the registry', () => source.waiting > 0, 30_000)
    child.process.kill('SIGINT')
    t.equal(await child.ended, 130, child.stderr())
    t.same(readdirSync(join(far.state, 'runs')), [])
    await nothingIsLeft(t, far)
  })

  await t.test('as the container is made', async t => {
    const child = started(runs.start(...mount, ...network, ...shell('sleep 600')))
    await until('it is there', async () => (await docker.run('ps', '--all', '--quiet')) !== '', 60_000)
    child.process.kill('SIGTERM')
    t.not(await child.ended, 0)
    await nothingIsLeft(t, runs, (JSON.parse(child.stdout()) as RunAnswer).runId)
  })

  await t.test('while the container runs', async t => {
    const child = started(
      runs.start(...mount, ...network, ...shell('cat /data/train/000001.cls; echo ready; sleep 600')),
    )
    await until('it runs', () => child.stderr().includes('ready'), 60_000)
    child.process.kill('SIGINT')
    t.equal(await child.ended, 130, child.stderr())
    const run = JSON.parse(child.stdout()) as RunAnswer
    t.match(exitOf(run), { code: 130 })
    t.equal(isComplete(run), true)
    await nothingIsLeft(t, runs, run.runId)
  })

  await t.test('while its outputs are hashed', async t => {
    const out = join(folder, 'huge')
    // More than can be hashed before the test has seen it; it takes no room.
    const script = `cat /data/train/000002.cls; truncate -s ${2 ** 40} $BOBBIN_OUTPUT/huge; exit 5`
    const child = started(runs.start(...mount, ...network, '--output', out, ...shell(script)))
    await until(
      'the command is over',
      () => {
        const facts = runs.latestFacts()
        return facts?.outputDir === out && facts.exitCode === 5
      },
      60_000,
    )
    child.process.kill('SIGINT')
    t.equal(await child.ended, 130, child.stderr())
    const { runId } = runs.latestFacts()!
    await nothingIsLeft(t, runs, runId)
    truncateSync(join(out, 'huge'), 5)
    const rows = await runs.cli.rows<RunAnswer & { state: string }>('runs', runId)
    t.match(rows, [{ state: 'exit 5', outputs: [{ path: 'huge', size: 5 }] }])
    t.match(exitOf(rows[0]!), { code: 5, problems: [/made later/] })
    t.equal((await runs.bobbin('record', 'verify', runId)).status, 0)
  })
})

t.test('a mount that dies under a container is noticed, and nothing hangs (S50)', async t => {
  const out = join(folder, 'dies')
  const script = `cat /data/train/000005.cls; echo ready; while ! test -e $BOBBIN_OUTPUT/go; do sleep 0.1; done
cat /data/train/000006.cls; ls /bobbin/mounts/0/data; exit 9`
  const child = started(runs.start(...mount, ...network, '--output', out, ...shell(script)))
  await until('it runs', () => child.stderr().includes('ready'), 60_000)
  const { daemon } = await runs.cli.json<{ daemon: { pid: number } }>('status')
  process.kill(parentOf(daemon.pid), 'SIGKILL')
  writeFileSync(join(out, 'go'), '')
  t.equal(await child.ended, 9, child.stderr())
  const run = JSON.parse(child.stdout()) as RunAnswer
  t.match(child.stderr(), /bobbin: the mount .* ended during the run/)
  t.equal(isComplete(run), false)
  t.match(exitOf(run), { code: 9, killed: false, problems: [/mount.* ended during the run/] })
  t.equal((await runs.bobbin('record', 'verify', run.runId)).status, 0)
  await nothingIsLeft(t, runs, run.runId)
})

t.test('a daemon that is killed again and again is no error in the container, and its record is complete', async t => {
  const out = join(folder, 'again')
  const script = `for i in 1 2 3; do echo ready $i; while ! test -e $BOBBIN_OUTPUT/go$i; do sleep 0.1; done
sha256sum /data/train/00000$i.jpg || exit 9; done`
  const child = started(runs.start(...mount, ...network, '--output', out, ...shell(script)))
  for (const i of [1, 2, 3]) {
    await until('it runs', () => child.stderr().includes(`ready ${i}`), 60_000)
    let pid: number | undefined
    await until('there is a daemon', async () => {
      const { stdout, status } = await runs.cli.try('status', '--json')
      pid = status === 0 ? (JSON.parse(stdout) as { daemon: { pid: number } | null }).daemon?.pid : undefined
      return pid !== undefined
    })
    process.kill(pid!, 'SIGKILL')
    writeFileSync(join(out, `go${i}`), '')
  }
  t.equal(await child.ended, 0, child.stderr())
  const run = JSON.parse(child.stdout()) as RunAnswer
  for (const i of [1, 2, 3]) {
    const content = readFileSync(written.paths.get(`train/00000${i}.jpg`)!)
    t.match(child.stderr(), createHash('sha256').update(content).digest('hex'))
  }
  t.equal(isComplete(run), true)
  t.match(exitOf(run), { code: 0, killed: false })
  await nothingIsLeft(t, runs, run.runId)
})

t.test('no name can be an option of the engine, nor a second mount', async t => {
  const hit = join(folder, 'hit')
  const at = (target: string) => ['--mount', `${written.reference}:${target}`]
  const refused: readonly [string[], number, RegExp][] = [
    [['--', '--privileged', 'true'], 2, /not an image/],
    [['--', '-v/:/host', 'true'], 2, /not an image/],
    [['--', 'local:1\n--privileged', 'true'], 2, /not an image/],
    [[...at('/data,source=/etc'), ...shell('true')], 2, /not an absolute path/],
    [[...at('/data\n'), ...shell('true')], 2, /not an absolute path/],
    [[...at('/da"ta'), ...shell('true')], 2, /not an absolute path/],
    [['--output', join(folder, 'a,readonly=false'), ...shell('true')], 2, /plainer path/],
    [['--output', join(folder, 'a"b'), ...shell('true')], 2, /plainer path/],
    [['-e', '--privileged', ...shell('true')], 2, /NAME=VALUE/],
    [['-e', 'A\nB=1', ...shell('true')], 2, /NAME=VALUE/],
    [['--mount', '-v/:/host', ...shell('true')], 2, /-v/],
  ]
  for (const [args, code, words] of refused) {
    const before = latest(runs)
    const { status, stderr } = await runs.bobbin('run', ...network, ...args)
    t.equal(status, code, `${args.join(' ')}: ${stderr}`)
    t.match(stderr, words)
    t.equal(latest(runs), before, 'nothing was started for it')
  }

  const passed = await runs.run(...network, '-e', 'ODD=-v/:/host,a\nb "c"', 'local:1', 'sh', '-c', 'echo "$ODD"; id -u')
  t.equal(readFileSync(join(passed.record, 'stdout.log'), 'utf8'), '-v/:/host,a\nb "c"\n0\n')
  const words = ['--privileged', '-v/:/host', '--', 'a,b\nc']
  const echoed = await runs.run(...network, 'local:1', 'echo', ...words)
  t.equal(readFileSync(join(echoed.record, 'stdout.log'), 'utf8'), `${words.join(' ')}\n`)
  const program = await runs.run(...network, 'local:1', '--privileged')
  t.equal(program.exitCode, 127, 'the engine looks for a program of that name in the image')
  const dashed = await runs.run(...network, ...at('/-v /--privileged'), 'local:1', 'ls', '/-v /--privileged')
  t.equal(readFileSync(join(dashed.record, 'stdout.log'), 'utf8'), 'train\n')
  // Values of docker's own options stay values.
  for (const option of [
    '--workdir',
    '--user',
    '--memory',
    '--entrypoint',
    '--ipc',
    '--cpus',
    '--shm-size',
    '--ulimit',
  ]) {
    const { status, stderr } = await runs.bobbin(
      'run',
      ...network,
      `${option}=--volume=/:/host`,
      ...shell(`touch ${hit}`),
    )
    t.not(status, 0, `${option}: ${stderr}`)
  }
  t.notOk(existsSync(hit))

  const comma = new Runs(join(folder, 'with,comma'), docker.env)
  t.teardown(() => comma.cli.try('stop', '--force'))
  await comma.commit({ 'code.txt': 'the code' })
  const odd = await comma.bobbin('run', ...network, ...mount, ...shell('true'))
  t.equal(odd.status, 2)
  t.match(odd.stderr, /plainer path/)
  await nothingIsLeft(t, comma)
  await nothingIsLeft(t, runs)
  t.equal((await runProgram('docker', ['version'], { env: { ...process.env, ...docker.env } })).status, 0)
})
