import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { acquireOwnership, readOwner } from '../../../../daemon/store/index.js'

const facts = { pid: process.pid, socketPath: '/run/x.sock', version: '0.1.0', startedAt: 1 }

t.test('acquireOwnership gives a cache to one process at a time', async t => {
  const cacheDir = join(t.testdir(), 'cache')
  t.same(readOwner(cacheDir), { isHeld: false, facts: undefined })
  const ownership = await acquireOwnership(cacheDir, facts)
  t.same(readOwner(cacheDir), { isHeld: true, facts })
  await t.rejects(acquireOwnership(cacheDir, facts), {
    code: 'CACHE_IN_USE',
    message: new RegExp(`${cacheDir} belongs to process ${process.pid}: .*--cache`),
  })
  ownership.release()
  ownership.release()
  t.equal(readOwner(cacheDir).isHeld, false)
  ;(await acquireOwnership(cacheDir, facts)).release()
})

t.test('acquireOwnership refuses a cache that another process owns, until that is killed', async t => {
  const cacheDir = join(t.testdir(), 'cache')
  const module = new URL('../../../../daemon/store/index.js', import.meta.url).href
  const script = `import { acquireOwnership } from ${JSON.stringify(module)}
    await acquireOwnership(process.argv[1], { pid: process.pid, version: 'child', startedAt: 2 })
    console.log('owned'); setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, cacheDir], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  await new Promise(resolve => child.stdout.once('data', resolve))
  t.match(readOwner(cacheDir), { isHeld: true, facts: { pid: child.pid, version: 'child' } })
  await t.rejects(acquireOwnership(cacheDir, facts), {
    code: 'CACHE_IN_USE',
    message: new RegExp(`process ${child.pid}`),
  })
  const exited = new Promise(resolve => child.once('exit', resolve))
  child.kill('SIGKILL')
  await exited
  t.equal(readOwner(cacheDir).isHeld, false)
  ;(await acquireOwnership(cacheDir, facts)).release()
})

t.test('acquireOwnership keeps the cache while children that it starts come and go', async t => {
  const cacheDir = join(t.testdir(), 'cache')
  const ownership = await acquireOwnership(cacheDir, facts)
  spawnSync('true')
  t.equal(readOwner(cacheDir).isHeld, true)
  ownership.release()
})

t.test('acquireOwnership makes a cache that others can neither read nor write', async t => {
  const cacheDir = join(t.testdir(), 'deep', 'cache')
  ;(await acquireOwnership(cacheDir, facts)).release()
  t.equal(statSync(cacheDir).mode & 0o007, 0)
})

t.test('acquireOwnership refuses a cache that everybody may write to', async t => {
  const cacheDir = join(t.testdir(), 'cache')
  mkdirSync(cacheDir)
  chmodSync(cacheDir, 0o777)
  await t.rejects(acquireOwnership(cacheDir, facts), { code: 'ACCESS_DENIED', message: /chmod o-w/ })
})

t.test('acquireOwnership refuses a file in place of the cache', async t => {
  const cacheDir = join(t.testdir({ cache: 'a file' }), 'cache')
  await t.rejects(acquireOwnership(cacheDir, facts), { code: 'LOCAL_IO' })
})

t.test('readOwner says that the cache is held when its facts are damaged', async t => {
  const cacheDir = join(t.testdir(), 'cache')
  const ownership = await acquireOwnership(cacheDir, facts)
  writeFileSync(join(cacheDir, 'owner'), '{"pid": 12')
  t.same(readOwner(cacheDir), { isHeld: true, facts: undefined })
  rmSync(join(cacheDir, 'owner'))
  ownership.release()
})
