/** Mounted and unmounted ten thousand times: nothing is left of it. */
import { readdirSync, readFileSync } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { cannotMount, mountsBelow, small, until } from '../support/daemon.js'

const CYCLES = 10_000
/** Every so often a file stays open over the unmount, which is then forced. */
const BUSY_EVERY = 50
/** Until caches are as large as they get. */
const SETTLED_AT = 1000

t.setTimeout(900_000)

t.test(
  `${CYCLES} mounts and unmounts leave no descriptor, thread, mount or memory`,
  { skip: cannotMount() },
  async t => {
    const { daemon, written } = await small(t, { 'd/f': 'f' }, { transport: 'native', watchdogMs: 850_000 })
    const look = () => {
      const status = readFileSync(`/proc/${daemon.process.pid}/status`, 'utf8')
      const number = (name: string) => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(status)![1])
      return {
        descriptors: readdirSync(`/proc/${daemon.process.pid}/fd`).length,
        threads: number('Threads'),
        rssKiB: number('RssAnon'),
      }
    }
    const idle = look()
    // A mount's threads end a moment before its descriptors are closed.
    const settle = async () => {
      await until('the last one has ended', () => look().threads === idle.threads)
      await sleep(500)
      return look()
    }
    let settled = idle
    const startedAt = Date.now()
    for (let i = 0; i < CYCLES; i++) {
      const { path } = await daemon.mount(written, 'mnt')
      if (i % BUSY_EVERY !== 0) {
        if (i % 7 === 0) await readFile(join(path, 'd/f'))
        await daemon.client.unmount(path, false)
      } else {
        const file = await open(join(path, 'd/f'))
        await daemon.client.unmount(path, true)
        await file.close()
      }
      if (i === SETTLED_AT) settled = await settle()
    }
    t.comment(`${Math.round((Date.now() - startedAt) / CYCLES)} ms a cycle`)
    const { descriptors, threads, rssKiB } = await settle()
    t.equal(threads, settled.threads)
    t.equal(descriptors, settled.descriptors)
    t.ok(rssKiB < settled.rssKiB + 4096, `${settled.rssKiB} KiB, then ${rssKiB} KiB`)
    t.same(mountsBelow(daemon.folder), [])
    t.same((await daemon.client.status()).mounts, [])
  },
)
