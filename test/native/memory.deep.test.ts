/** What mounts cost while nobody reads: a thread that waits has no buffer of its own. */
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { daemonCommand, findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { DaemonClient } from '../../daemon/control/client.js'
import { bodyOf, cannotMount, testFolder, until } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { writeRegistry } from '../support/registry.js'

const MOUNTS = 100
const THREADS = 8
/** Measured: 15 MiB idle, 23 MiB after reading; 861 MiB with a buffer per thread. */
const IDLE_MIB_MAX = 64

t.setTimeout(300_000)

const skip = cannotMount() || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')

t.test(`${MOUNTS} mounts with ${THREADS} threads stay under ${IDLE_MIB_MAX} MiB (S67)`, { skip }, async t => {
  const folder = testFolder(t)
  const cacheDir = join(folder, 'cache')
  const bytes = noise(2 ** 20, 1)
  const written = await writeRegistry(join(folder, 'registry'), 'test/small', { f: bytes })
  const { argv } = daemonCommand({
    ...{ cacheDir, ioTimeoutMs: 60_000, offline: false, freeBytesMin: 0, transport: 'native' },
  })
  const [program, ...args] = argv
  const child = spawn(program!, ['--threads', String(THREADS), ...args], { stdio: 'ignore' })
  const ended = new Promise(resolve => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGTERM')
    await ended
  })
  const client = new DaemonClient(join(cacheDir, 'daemon.sock'), child.pid!)
  await until('it lives', () => client.isAlive())
  const paths: string[] = []
  for (let i = 0; i < MOUNTS; i++) {
    const path = join(folder, `m${i}`)
    mkdirSync(path)
    await client.mount({ ...bodyOf(written, path), openMode: 'cached' })
    paths.push(path)
  }
  const rssMiB = () => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))![1]) / 1024
  const idle = rssMiB()
  t.ok(idle < IDLE_MIB_MAX, `idle: ${idle.toFixed(1)} MiB`)
  const read = await Promise.all(paths.map(path => readFile(join(path, 'f'))))
  t.ok(read.every(part => part.equals(bytes)))
  const after = rssMiB()
  t.ok(after < IDLE_MIB_MAX, `after all were read at once: ${after.toFixed(1)} MiB`)
})
