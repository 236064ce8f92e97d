/** A folder as a `Source` and as a `RegistryWriter`. */
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { createSource } from '../../../../daemon/source/index.js'
import { createRegistryWriter } from '../../../../daemon/writer/index.js'
import { testRegistryWriter } from '../../../suites/registry-writer.js'
import { testSource } from '../../../suites/source.js'

const CONFIG = { ioTimeoutMs: 5000, offline: true }

t.test('a folder is a Source, offline too', async t =>
  testSource(t, async t => {
    const root = t.testdir()
    const source = createSource(CONFIG)
    t.teardown(() => source.close())
    return {
      source,
      keyOf: name => ({ kind: 'file', path: join(root, name) }),
      async write(name, bytes) {
        mkdirSync(dirname(join(root, name)), { recursive: true })
        writeFileSync(join(root, name), bytes)
      },
      async remove(name) {
        rmSync(join(root, name))
      },
    }
  }),
)

t.test('a folder is a RegistryWriter, offline too', async t =>
  testRegistryWriter(t, async t => {
    const root = t.testdir()
    const source = createSource(CONFIG)
    const writer = createRegistryWriter({ kind: 'file', path: root }, { ...CONFIG, cacheDir: t.testdirName })
    t.teardown(async () => {
      source.close()
      await writer.close()
    })
    return {
      source,
      writer,
      keyOf: name => ({ kind: 'file', path: join(root, name) }),
      everything: async () => readdirSync(root, { recursive: true }).map(String).sort(),
    }
  }),
)

t.test('offline, S3 is not asked for anything', async t => {
  const source = createSource(CONFIG)
  t.teardown(() => source.close())
  const code = 'UPSTREAM_UNAVAILABLE'
  await t.rejects(source.read({ kind: 's3', bucket: 'b', key: 'k' }), { code })
  await t.rejects(source.list({ kind: 's3', bucket: 'b', key: '' })[Symbol.asyncIterator]().next(), { code })
  const config = { ...CONFIG, cacheDir: t.testdir() }
  t.throws(() => createRegistryWriter({ kind: 's3', bucket: 'b' }, config), { code })
  const writer = createRegistryWriter({ kind: 'file', path: t.testdirName }, config)
  t.teardown(() => writer.close())
  await t.rejects(writer.find({ kind: 's3', bucket: 'b', key: 'k' }), { code })
  t.throws(() => writer.look({ kind: 's3', bucket: 'b', key: 'k' }), { code })
  t.throws(() => writer.list('b', ''), { code })
})

t.test('a source refuses a kind of key that it does not know', async t => {
  const source = createSource({ ioTimeoutMs: 5000 })
  t.teardown(() => source.close())
  await t.rejects(source.read({ kind: 'gs', bucket: 'b', key: 'k' } as never), { message: /no source reads "gs"/ })
})
