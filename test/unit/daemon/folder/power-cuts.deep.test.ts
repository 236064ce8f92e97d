/**
 * The power is cut while a store and an installation are at work, and everything is read afterwards. BOBBIN_POWER_CUTS is how
 * often, in all; 500 take some minutes.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, readSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { findBobbinFuse } from '../../../../daemon/control/bobbin-fuse.js'
import { installPackage } from '../../../../daemon/folder/install.js'
import type { Entry } from '../../../../daemon/model/index.js'
import { objectId, openStore } from '../../../../daemon/store/index.js'
import { cutDisk } from '../../../support/cut-disk.js'
import { noise, writeEntry } from '../../../support/objects.js'

t.setTimeout(1_800_000)

const CUTS = Number(process.env.BOBBIN_POWER_CUTS ?? 30)
const MiB = 2 ** 20

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** With data=writeback, a deleted object can come back with the bytes of another one. */
const FILE_SYSTEMS = [
  { options: 'data=ordered', isBelieved: true },
  { options: 'data=ordered,nodelalloc', isBelieved: true },
  { options: 'data=writeback', isBelieved: false },
]

for (const { options, isBelieved } of FILE_SYSTEMS)
  t.test(
    `whenever the power is cut, a store on ext4 with ${options} gives no wrong byte afterwards (S17) (S91)`,
    async t => {
      const disk = cutDisk(t, 32, options)
      if (disk === undefined) return
      const source = t.testdir()
      const entries: Entry[] = []
      for (let i = 0; i < 150; i++) entries.push(await writeEntry(source, String(i), noise(1000 + 2000 * (i % 97), i)))
      const [cacheDir, churn] = [
        join(disk.path, 'cache'),
        fileURLToPath(new URL('../../../support/store-churn.js', import.meta.url)),
      ]
      mkdirSync(cacheDir, { mode: 0o750 })
      const program = findBobbinFuse().path
      const owner = spawn(process.execPath, [churn, cacheDir, String(10 * MiB), ...(program ? [program] : [])], {
        stdio: ['ignore', 'pipe', 'inherit'],
        env: { ...process.env, SPECS: JSON.stringify(entries) },
      })
      let isDead = false
      const ended = new Promise<void>(resolve =>
        owner.once('exit', () => {
          isDead = true
          resolve()
        }),
      )
      await new Promise(resolve => owner.stdout.once('data', resolve))
      owner.stdout.resume()
      const seen = { believed: 0, hashed: 0, damaged: 0, wrong: [] as string[] }
      for (let i = 0; i < CUTS / FILE_SYSTEMS.length && !isDead; i++) {
        await sleep(Math.random() * 60)
        await disk.cut(async path => {
          const cache = join(path, 'cache')
          const journal = join(cache, 'objects/v1/journal')
          // The machine was started again.
          if (existsSync(journal)) {
            const lines = readFileSync(journal, 'latin1').replaceAll(/^boot .*$/gm, 'boot another-one')
            writeFileSync(journal, lines, 'latin1')
          }
          const store = await openStore(cache, { bytesMax: 1e9, freeBytesMin: 0, syncAfterMs: 1e8 })
          for (const entry of entries) {
            const believed = store.openNow(entry)
            const wasThere = store.stateOf(entry) !== 'absent'
            const object = believed ?? (await store.open(entry))
            if (believed !== undefined) seen.believed++
            else if (object !== undefined) seen.hashed++
            else if (wasThere) seen.damaged++
            if (object === undefined) continue
            const bytes = Buffer.alloc(entry.size)
            readSync(object.fd, bytes, 0, bytes.length, 0)
            if (sha256(bytes) !== entry.hash.hex) seen.wrong.push(`cut ${i}: ${objectId(entry)}`)
            await object.close()
          }
          await store.close()
        })
      }
      t.notOk(isDead, 'the store was at work all the time')
      owner.kill('SIGKILL')
      await ended
      t.same(seen.wrong, [])
      if (isBelieved) t.ok(seen.believed > 0, `${seen.believed} objects were believed without being hashed`)
      t.ok(seen.hashed + seen.damaged > 0, `${seen.hashed} were hashed and right, ${seen.damaged} were damaged`)
      t.comment(`${options}: ${JSON.stringify({ ...seen, wrong: seen.wrong.length })}`)
    },
  )

t.test('whenever the power is cut, what install has put under its name is whole (S93)', async t => {
  const disk = cutDisk(t, 48)
  if (disk === undefined) return
  const source = t.testdir()
  const entries: Entry[] = []
  for (let i = 0; i < 300; i++) entries.push(await writeEntry(source, `${i % 7}/${i}`, noise(500 + 150 * i, i)))
  const wrongIn = (path: string) =>
    entries.filter(({ key, hash }) => {
      const file = join(path, 'made', 'here', key)
      return existsSync(file) && sha256(readFileSync(file)) !== hash.hex
    })
  const missingIn = (path: string) => entries.filter(({ key }) => !existsSync(join(path, 'made', 'here', key))).length
  const install = () =>
    installPackage(entries, join(disk.path, 'made', 'here'), { sourceConfig: { ioTimeoutMs: 60_000 } })
  let isOver = false
  const installing = install().finally(() => {
    isOver = true
  })
  const missing: number[] = []
  while (!isOver) {
    await disk.cut(async path => {
      missing.push(missingIn(path))
      t.same(wrongIn(path), [])
    })
    await sleep(20)
  }
  t.equal((await installing).files, entries.length)
  t.ok(
    missing.some(count => count > 0),
    `files that were missing: ${missing}`,
  )
  await disk.cut(async path => {
    t.same(wrongIn(path), [])
    t.equal(missingIn(path), 0, 'all of it is there')
  })
})
