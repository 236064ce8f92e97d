/** Upgrades whose daemon does not start: the one that works goes on, or is started again. */
import { spawn } from 'node:child_process'
import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { bodyOf, cannotMount, reach, testFolder, until } from '../support/daemon.js'
import { repository } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'

t.setTimeout(300_000)

const skip = cannotMount() || (findBobbinFuse().reason ?? false)

const REAL = `await import(${JSON.stringify(pathToFileURL(join(repository, 'dist/daemon/main.js')).href)})`
const PROGRAMS = {
  good: REAL,
  'does-not-start': 'process.exit(3)',
  // It ends with the first word of bobbin-fuse, which comes when the daemon of before has ended.
  'serves-nobody': `
import { Socket } from 'node:net'
const { write } = Socket.prototype
Socket.prototype.write = function (...args) {
  this.once('data', () => process.exit(4))
  return write.apply(this, args)
}
${REAL}`,
}

/** A daemon that is started by a link to a version, as upgrades move it. */
async function stage(t: Test) {
  const folder = testFolder(t)
  const install = (version: string, program: keyof typeof PROGRAMS) => {
    mkdirSync(join(folder, version), { recursive: true })
    writeFileSync(join(folder, version, 'daemon.mjs'), PROGRAMS[program])
  }
  const moveTo = (version: string) => {
    symlinkSync(version, join(folder, 'next'))
    renameSync(join(folder, 'next'), join(folder, 'current'))
  }
  install('1', 'good')
  moveTo('1')
  const cacheDir = join(folder, 'cache')
  const fuse = findBobbinFuse().path!
  const options = JSON.stringify({ cacheDir, ioTimeoutMs: 10_000, offline: false, freeBytesMin: 0 })
  const daemon = [process.execPath, join(folder, 'current/daemon.mjs'), options]
  const [command, ...words] = [...AS_USERS_DO, fuse, '--cache', cacheDir, '--', ...daemon]
  const child = spawn(command!, words, { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', chunk => {
    said += chunk
  })
  const ended = new Promise(resolve => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGTERM')
    await ended
  })
  const client = await reach(cacheDir, child, () => said)
  const files = Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`cold/${i}`, `cold ${i}`]))
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', files)
  const mountpoint = join(folder, 'mnt')
  mkdirSync(mountpoint)
  await client.mount(bodyOf(written, mountpoint))
  let next = 0
  return {
    ...{ folder, client, install, moveTo },
    bobbin: new Bobbin(cacheDir, { BOBBIN_FREE_FLOOR: '0' }),
    log: () => said,
    reload: () => runProgram(fuse, ['--reload', String(child.pid), '--cache', cacheDir]),
    daemonNow: async () => (await client.status()).daemon,
    /** A file that only a daemon can bring. */
    readsOn: async (when: string) => {
      const i = next++
      t.equal(await readFile(join(mountpoint, `cold/${i}`), 'utf8'), `cold ${i}`, when)
    },
  }
}

t.test('a reload whose daemon does not start keeps the one that works, and says so (S171)', { skip }, async t => {
  const { bobbin, log, install, moveTo, reload, daemonNow, readsOn } = await stage(t)
  const first = await daemonNow()
  t.equal(first.notReplaced, null)
  install('2', 'does-not-start')
  moveTo('2')
  t.match(await reload(), {
    status: 1,
    stderr: /not reloaded: the new daemon .*\/2\/daemon\.mjs ended with exit code 3.*process \d+ goes on/,
  })
  t.match(await daemonNow(), { pid: first.pid, notReplaced: /2\/daemon\.mjs ended with exit code 3/ })
  await readsOn('the daemon of before serves')
  t.match(await bobbin.text('status'), /^ +not the newest: the new daemon .* ended with exit code 3/m)
  t.match(
    log(),
    /"program":"[^"]*\/2\/daemon\.mjs","error":"ended with exit code 3","msg":"the new daemon does not start"/,
  )

  process.kill(first.pid, 'SIGKILL')
  await readsOn('the one that worked last is started again, though the link leads elsewhere')
  const second = await daemonNow()
  t.not(second.pid, first.pid)
  t.match(second.notReplaced, /2\/daemon\.mjs ended with exit code 3 before it served anybody.*worked last/)

  install('3', 'good')
  moveTo('3')
  t.match(await reload(), { status: 0, stderr: '' })
  const third = await daemonNow()
  t.not(third.pid, second.pid)
  t.equal(third.notReplaced, null, 'it is the one at its path again')
  await readsOn('the new one serves')
})

t.test('a new daemon that ends before it serves anybody is followed by the one before (S171)', { skip }, async t => {
  const { log, install, moveTo, reload, daemonNow, readsOn } = await stage(t)
  install('2', 'serves-nobody')
  moveTo('2')
  t.match(await reload(), { status: 1, stderr: /the new daemon ended with exit code 4/ })
  await readsOn('the one of before is back')
  t.match((await daemonNow()).notReplaced, /2\/daemon\.mjs ended with exit code 4 before it served anybody/)
  t.match(log(), /a daemon does not start, and the one that worked last is started again/)
})

t.test('a program that was broken in its place is noticed before the daemon is given up (S171)', { skip }, async t => {
  const { folder, install, reload, daemonNow, readsOn } = await stage(t)
  const before = await daemonNow()
  install('1', 'does-not-start')
  t.match(await reload(), { status: 1 })
  rmSync(join(folder, '1'), { recursive: true })
  t.match(await reload(), { status: 1, stderr: /the new daemon .* ended with exit code 1/ }, 'or is gone')
  t.equal((await daemonNow()).pid, before.pid)
  await readsOn('the daemon of before serves')
  install('1', 'good')
  await until('it is replaced', async () => (await reload()).status === 0)
  t.not((await daemonNow()).pid, before.pid)
  await readsOn('the new one serves')
})
