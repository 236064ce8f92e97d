import { rm, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { type RunningLoader, startLoader } from '../support/loader.js'
import { runScript } from '../support/python.js'
import type { WrittenPackage } from '../support/registry.js'
import { sampleKeys, writeSamples } from '../support/samples.js'

function sidecar(loader: RunningLoader) {
  return { BOBBIN_SIDECAR: `unix:${loader.socket}` }
}

function about(written: WrittenPackage) {
  const { reference, registry } = written
  const keys = sampleKeys(written)
  return { reference, registry, keys, samples: keys.length, source: join(new URL(registry).pathname, written.name) }
}

/** Its process; it may be just on its way up. */
async function daemonOf(loader: RunningLoader): Promise<number> {
  for (let tries = 0; ; tries++) {
    const { status, stdout, stderr } = await loader.cli.try('status', '--json')
    if (status === 0) return (JSON.parse(stdout) as { daemon: { pid: number } }).daemon.pid
    if (tries === 20) throw new Error(stderr)
    await new Promise(resolve => setTimeout(resolve, 250))
  }
}

t.test('the Python client', async t => {
  const written = await writeSamples(join(t.testdir(), 'registry'), 200)
  const loader = await startLoader(t)
  const common = { python: 'system', options: about(written), env: sidecar(loader) } as const

  await t.test('reads batches by paths and by tar, and refuses foreign cursors (S29)', t =>
    runScript(t, 'basics.py', common),
  )
  const seed = Math.floor(Math.random() * 2 ** 32)
  await t.test(`notices what was cut or damaged on the way (S31) (seed ${seed})`, t =>
    runScript(t, 'faults.py', { ...common, options: { ...common.options, seed } }),
  )
  await t.test(`reads each sample once, over worlds, workers and cuts (S28) (seed ${seed})`, t =>
    runScript(t, 'exactly_once.py', { ...common, options: { ...common.options, seed, cuts: 17, cases: 1000 } }),
  )
  await t.test('goes on with the next epoch, whoever reads a pass, or says that it cannot', t =>
    runScript(t, 'passes.py', common),
  )
  await t.test('looks for its sidecar until one has answered, and asks none again that it may not open (S114)', t =>
    runScript(t, 'addresses.py', common),
  )
  await t.test('ends with its program, whatever is open then (S115)', t =>
    runScript(t, 'exits.py', {
      ...common,
      options: { ...common.options, torch: false, sidecar: loader.process.pid! },
    }),
  )
  await t.test('reads what a proxy has gzipped, and refuses what is no answer of a sidecar (S117)', t =>
    runScript(t, 'middlebox.py', common),
  )
  await t.test('is served beside 49 others', t =>
    runScript(t, 'crowd.py', { ...common, options: { ...common.options, clients: 50 } }),
  )
})

t.test('the Python client takes nothing from a sidecar that lies into a shell, a path or a clock', t =>
  runScript(t, 'hostile.py', { python: 'system', options: {}, env: {} }),
)

t.test('the Python client says what is missing (S30)', async t => {
  for (const [what, code, damage] of [
    ['gone', 'OBJECT_GONE', (path: string) => rm(path)],
    ['damaged', 'OBJECT_CORRUPT', (path: string) => truncate(path, 10)],
  ] as const) {
    await t.test(what, async t => {
      const written = await writeSamples(join(t.testdir(), 'registry'), 60)
      const gone = ['train/000007.jpg', 'train/000031.jpg', 'train/000052.jpg']
      for (const key of gone) await damage(written.paths.get(key)!)
      const loader = await startLoader(t)
      await runScript(t, 'missing.py', {
        python: 'system',
        options: { ...about(written), gone, code },
        env: sidecar(loader),
      })
    })
  }
})

for (const transport of ['bobbin-fuse', 'none'] as const) {
  t.test(`epochs go on when sidecar and daemon are killed (S32) (${transport})`, async t => {
    const written = await writeSamples(join(t.testdir(), 'registry'), 300)
    const env = transport === 'none' ? { BOBBIN_FUSE: 'none' } : {}
    const loader = await startLoader(t, { env })
    let kills = 0
    let killing = Promise.resolve()
    const kill = async (whom: 'sidecar' | 'daemon') => {
      kills++
      if (whom === 'daemon') {
        process.kill(await daemonOf(loader), 'SIGKILL')
      } else {
        await loader.end('SIGKILL')
        await loader.start()
      }
    }
    await runScript(t, 'epochs.py', {
      python: 'system',
      env: sidecar(loader),
      options: { ...about(written), transports: ['paths', 'tar'], epochs: 3, pause: 0.01 },
      onFacts({ epoch, step }) {
        if (epoch === 0 && step === 9) killing = kill('sidecar')
        if (epoch === 1 && step === 9) killing = kill('daemon')
        if (epoch === 2 && (step === 5 || step === 15)) killing = kill(step === 5 ? 'daemon' : 'sidecar')
      },
    })
    await killing
    t.equal(kills, 8)
  })
}
