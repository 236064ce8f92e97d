import { createPublicKey } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { provenance } from '../../cli/record/statement.js'
import { runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'
import { runScript } from '../support/python.js'
import { factsOf, Runs } from '../support/runs.js'
import { writeSamples } from '../support/samples.js'

t.test('records are what in-toto, SLSA and DSSE say they should be', async t => {
  const folder = testFolder(t)
  const runs = new Runs(folder)
  t.teardown(() => runs.cli.try('stop', '--force'))
  const written = await writeSamples(join(folder, 'registry'), 5)
  const commit = await runs.commit({ 'train.sh': 'cat "$1" > "$BOBBIN_OUTPUT/model"' })
  const key = join(folder, 'key.pem')
  await runProgram('openssl', ['genpkey', '-algorithm', 'ed25519', '-out', key])
  const data = join(folder, 'data')
  const mount = ['--mount', `${written.reference}:${data}`, '--output', join(folder, 'out')]
  const command = ['--', 'sh', 'train.sh', join(data, 'train/000001.jpg')]
  const run = await runs.run('--host', '--key', key, ...mount, ...command)
  t.equal(run.exitCode, 0)
  const spki = createPublicKey(readFileSync(key)).export({ type: 'spki', format: 'der' })
  await runScript(t, 'record.py', {
    options: {
      record: run.record,
      runId: run.runId,
      topHash: written.topHash,
      commit,
      // The last 32 bytes of an Ed25519 key's SPKI form are the key.
      publicKey: spki.subarray(-32).toString('hex'),
      imageUri: imageUri(run),
    },
  })
})

/** What a record would call an image of a registry, without an engine to make one. */
function imageUri(run: { readonly record: string }): string {
  const image = {
    asked: 'localhost:5000/team/trainer:v1',
    reference: `localhost:5000/team/trainer@sha256:${'a'.repeat(64)}`,
    digest: `sha256:${'a'.repeat(64)}`,
    repository: 'localhost:5000/team/trainer',
    id: `sha256:${'b'.repeat(64)}`,
    platformManifest: null,
    platform: 'linux/amd64',
    localOnly: false,
  }
  const ledger = { sha256: '', rows: 0, entriesRead: 0, bytesRead: 0, merkleRoot: '' }
  const statement = provenance({ ...factsOf(run), image }, { ledger, isComplete: true, files: new Map() })
  const { buildDefinition } = statement.predicate as {
    buildDefinition: { resolvedDependencies: { name: string; uri: string }[] }
  }
  return buildDefinition.resolvedDependencies.find(({ name }) => name === 'image')!.uri
}
