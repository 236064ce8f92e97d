/** Many readers of one object that does not come, and the readers of all others. */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { cannotMount, run, small, until } from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { noise } from '../support/objects.js'

const MIB = 2 ** 20
const READERS = 200
const STRIDE = 128 * 1024
/** Readers stay stuck for longer than the others may take. */
const IO_TIMEOUT_MS = 60_000
const OTHERS_MS = 20_000

const skip = cannotMount() || (findBobbinFuse().reason ?? false)

/** Threads that each read a piece of their own; says "right" when all have the bytes that the other file has there. */
const READ_PIECES = `
import os, sys, threading
path, right, readers, stride = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
wrong = []
def read(i):
    try:
        with open(path, 'rb', buffering=0) as file, open(right, 'rb', buffering=0) as other:
            if os.pread(file.fileno(), 4096, i * stride) != os.pread(other.fileno(), 4096, i * stride): wrong.append(i)
    except OSError as error:
        wrong.append(error)
threads = [threading.Thread(target=read, args=(i,)) for i in range(readers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(wrong or 'right')
`

for (const openMode of ['passthrough', 'cached', 'none'] as const) {
  t.test(`${READERS} readers of an object that hangs stop nobody else, ${openMode} (S107)`, { skip }, async t => {
    const server = await startHeldServer()
    t.teardown(() => server.stop())
    const contents = {
      stuck: noise(READERS * STRIDE, 1),
      ...Object.fromEntries(Array.from({ length: 3 }, (_, i) => [`large-${i}`, noise(9 * MIB, 10 + i)])),
      ...Object.fromEntries(Array.from({ length: 20 }, (_, i) => [`small-${i}`, noise(300_000, 20 + i)])),
    }
    const files = Object.fromEntries(
      Object.entries(contents).map(([key, bytes]) => [key, { bytes, physicalKey: server.add(key, bytes) }]),
    )
    const { daemon, written, registry } = await small(t, files, {
      transport: 'native',
      env: server.env,
      ioTimeoutMs: IO_TIMEOUT_MS,
    })
    const { path, facts } = await daemon.mount(written, 'mnt', { openMode })
    t.equal(facts.openMode, openMode)
    server.hold('stuck')
    const source = join(registry, written.name, 'stuck')
    const args = ['-c', READ_PIECES, join(path, 'stuck'), source, String(READERS), String(STRIDE)]
    const readers = spawn('python3', args, { stdio: ['ignore', 'pipe', 'inherit'] })
    let said = ''
    readers.stdout.setEncoding('utf8').on('data', chunk => {
      said += chunk
    })
    const ended = new Promise(resolve => readers.once('close', resolve))
    const threads = () => Number(/^Threads:\s*(\d+)$/m.exec(readFileSync(`/proc/${readers.pid}/status`, 'utf8'))?.[1])
    await until('all readers have begun', () => threads() > READERS && server.waiting > 0)
    // And have come as far as the kernel lets them.
    await sleep(500)

    const startedAt = performance.now()
    const others = Object.entries(contents).filter(([key]) => key !== 'stuck')
    const ran = await Promise.race([
      Promise.all(others.map(([key]) => run('sha256sum', [join(path, key)]))),
      sleep(OTHERS_MS, undefined),
    ])
    t.ok(ran !== undefined, 'the others are read')
    t.comment(`in ${Math.round(performance.now() - startedAt)} ms`)
    for (const [i, { stdout }] of (ran ?? []).entries()) {
      const [key, bytes] = others[i]!
      t.equal(String(stdout).slice(0, 64), createHash('sha256').update(bytes).digest('hex'), key)
    }
    t.equal(said, '', 'and nobody has given up')
    server.release()
    await ended
    t.equal(said, 'right\n')
  })
}
