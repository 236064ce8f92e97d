import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { startLoader } from '../support/loader.js'
import { runScript } from '../support/python.js'
import { sampleKeys, writeSamples } from '../support/samples.js'

const TOKEN = 'a-token-of-the-test-0123456789'

/** The libraries whose wrappers test/clients/wrapped_rank.py tries. */
const WRAPPERS = ['samplers', 'data pipes', 'datasets', 'accelerate', 'Trainer', 'Lightning']

/** Those scripts of docs/loader-recipes.md that try what no other test does. */
const RECIPES = ['torch_loop', 'webdataset_loop']

t.test('engines read batches', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-engines-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const written = await writeSamples(join(folder, 'registry'), 150)
  const keys = sampleKeys(written)
  const tokenFile = join(folder, 'token')
  writeFileSync(tokenFile, `${TOKEN}\n`)
  const loader = await startLoader(t, {
    args: [
      ...['--socket', join(folder, 'loader.sock'), '--listen', '127.0.0.1:0', '--token-file', tokenFile],
      ...['--serve', written.reference],
    ],
  })
  const tcp = loader.addresses.find(address => address.startsWith('http:'))!
  const options = { reference: written.reference, keys, tcp: tcp.replace('http://', `http://bobbin:${TOKEN}@`) }
  const env = { BOBBIN_SIDECAR: `unix:${join(folder, 'loader.sock')}` }

  await t.test("torch's DataLoader and torchdata's StatefulDataLoader, tuples and all start methods (S116)", t =>
    runScript(t, 'torch_loader.py', { options, env }),
  )
  await t.test("StatefulDataLoader's state goes on from anywhere, also between two epochs (S112)", t =>
    runScript(t, 'state.py', { options, env }),
  )
  await t.test('wrappers that divide among ranks once more are refused, and their right settings read all (S113)', t =>
    runScript(t, 'wrappers.py', {
      options: { ...options, samples: keys.length, cases: WRAPPERS },
      env: { ...env, HF_HUB_OFFLINE: '1' },
    }),
  )
  await t.test('the recipes for the loader read every sample once (S113)', t =>
    runScript(t, 'recipes.py', { options: { ...options, recipes: RECIPES }, env }),
  )
  await t.test('programs with torch that end in the middle of a stream say nothing', t =>
    runScript(t, 'exits.py', { options: { ...options, torch: true }, env }),
  )
  await t.test('webdataset, unchanged', t => runScript(t, 'webdataset_read.py', { options, env }))
  await t.test('torchrun and Ray, on two sidecars', async t => {
    const other = await startLoader(t)
    const sidecars = [env.BOBBIN_SIDECAR, `unix:${other.socket}`]
    await runScript(t, 'engines.py', { options: { ...options, sidecars }, env })
  })
})
