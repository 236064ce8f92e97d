import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { runProgram } from '../support/cli.js'
import { startLoader } from '../support/loader.js'
import { part, repository } from '../support/parts.js'
import { runScript } from '../support/python.js'
import { type FileContent, writeRegistry } from '../support/registry.js'

t.test('a model has the same weights, from the mount, from tar and from paths (S33)', async t => {
  const folder = t.testdir()
  const images = join(folder, 'faces')
  const script = join(repository, 'test/clients/faces.py')
  const { stdout, stderr } = await runProgram(part('loader'), [script, JSON.stringify({ folder: images })])
  if (stdout === '') return t.fail(stderr)
  const keys = JSON.parse(stdout) as Record<string, object>
  const files: Record<string, FileContent> = {}
  for (const [key, meta] of Object.entries(keys)) files[key] = { bytes: readFileSync(join(images, key)), meta }
  const { reference } = await writeRegistry(join(folder, 'registry'), 'test/faces', files)

  const loader = await startLoader(t)
  const mount = join(folder, 'mount')
  mkdirSync(mount)
  await loader.cli.text('mount', reference, mount)
  try {
    await runScript(t, 'model.py', {
      options: { reference, keys, mount, folder },
      env: { BOBBIN_SIDECAR: `unix:${loader.socket}`, OMP_NUM_THREADS: '1' },
    })
  } finally {
    await loader.cli.try('umount', mount)
  }
})
