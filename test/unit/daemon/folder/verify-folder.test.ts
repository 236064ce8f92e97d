import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { verifyFolder } from '../../../../daemon/folder/verify-folder.js'
import { type Entry, HASH_TYPES } from '../../../../daemon/model/index.js'
import { noise, writeEntry } from '../../../support/objects.js'

const MiB = 2 ** 20

async function sample(t: Test): Promise<{ readonly entries: Entry[]; readonly dir: string; readonly bytes: number }> {
  const dir = join(t.testdir(), 'dir')
  const entries: Entry[] = []
  for (const type of HASH_TYPES) {
    for (const size of [0, 1, 100_000, 8 * MiB, 17 * MiB]) {
      entries.push(await writeEntry(dir, `${type}/${size}.bin`, noise(size, size), type))
    }
  }
  entries.push(await writeEntry(dir, 'é', 'NFC'))
  entries.push(await writeEntry(dir, 'e\u0301', 'NFD'))
  return { entries, dir, bytes: entries.reduce((sum, entry) => sum + entry.size, 0) }
}

function flip(path: string, at: number): void {
  const bytes = readFileSync(path)
  bytes[at]! ^= 1
  writeFileSync(path, bytes)
}

t.test('verifyFolder says ok of a folder that is the package', async t => {
  const { entries, dir, bytes } = await sample(t)
  mkdirSync(join(dir, 'an empty folder'))
  const seen: number[] = []
  const found = await verifyFolder(entries, dir, { onProgress: progress => seen.push(progress.bytes) })
  t.same(found, { ok: true, files: entries.length, bytes, changed: [], missing: [], extra: [] })
  t.equal(seen.at(-1), bytes)
})

t.test('verifyFolder finds one changed bit, wherever it is', async t => {
  const { entries, dir } = await sample(t)
  for (const type of HASH_TYPES) {
    for (const at of [0, 8 * MiB - 1, 8 * MiB, 17 * MiB - 1]) {
      const path = join(dir, `${type}/${17 * MiB}.bin`)
      flip(path, at)
      const subset = entries.filter(({ key }) => key.startsWith(type))
      const found = await verifyFolder(subset, dir, { isKnown: () => true })
      t.match(found, { ok: false, changed: [`${type}/${17 * MiB}.bin`], missing: [], extra: [] })
      flip(path, at)
    }
  }
})

t.test('verifyFolder lists what is changed, missing and extra, in tree order (S21)', async t => {
  const { entries, dir } = await sample(t)
  truncateSync(join(dir, 'SHA256/100000.bin'), 99_999)
  flip(join(dir, 'CRC64NVME/1.bin'), 0)
  rmSync(join(dir, 'é'))
  rmSync(join(dir, 'sha2-256-chunked'), { recursive: true })
  writeFileSync(join(dir, 'sha2-256-chunked'), 'a file in place of a folder')
  writeFileSync(join(dir, 'SHA256/new'), '')
  mkdirSync(join(dir, 'more'))
  writeFileSync(join(dir, 'more/file'), '')
  writeFileSync(Buffer.concat([Buffer.from(`${dir}/more/`), Buffer.of(0xff, 0x41)]), '')
  for (const options of [{}, { isKnown: (key: string) => entries.some(entry => entry.key === key) }]) {
    const found = await verifyFolder(entries, dir, options)
    t.same(found.changed, ['CRC64NVME/1.bin', 'SHA256/100000.bin'])
    t.same(found.missing, [0, 1, 100_000, 17 * MiB, 8 * MiB].map(size => `sha2-256-chunked/${size}.bin`).concat('é'))
    t.same(found.extra, ['SHA256/new', 'more/\\xffA', 'more/file', 'sha2-256-chunked'])
    t.equal(found.ok, false)
  }
})

t.test('verifyFolder follows links to files, but enters no linked folder', async t => {
  const { entries, dir } = await sample(t)
  const elsewhere = `${dir}-elsewhere`
  cpSync(dir, elsewhere, { recursive: true })
  rmSync(join(dir, 'é'))
  symlinkSync(join(elsewhere, 'é'), join(dir, 'é'))
  t.equal((await verifyFolder(entries, dir)).ok, true)
  rmSync(join(dir, 'SHA256'), { recursive: true })
  symlinkSync(join(elsewhere, 'SHA256'), join(dir, 'SHA256'))
  const found = await verifyFolder(entries, dir)
  t.equal(found.missing.length, 5)
  t.same(found.extra, [], 'a link to a folder is not a file')
})

t.test('what is not a file is not extra (S146)', async t => {
  const { entries, dir } = await sample(t)
  execFileSync('mkfifo', [join(dir, 'fifo')])
  symlinkSync('nowhere', join(dir, 'broken'))
  symlinkSync('loop', join(dir, 'loop'))
  symlinkSync('SHA256', join(dir, 'folder'))
  symlinkSync('fifo', join(dir, 'link-to-fifo'))
  t.match(await verifyFolder(entries, dir), { ok: true, extra: [] })
  symlinkSync('é', join(dir, 'link'))
  t.match(await verifyFolder(entries, dir), { ok: false, extra: ['link'] })
})

t.test('verifyFolder neither reads nor waits for what is no file', async t => {
  const { entries, dir } = await sample(t)
  const replaced = ['SHA256/1.bin', 'CRC64NVME/1.bin', `sha2-256-chunked/${17 * MiB}.bin`, 'sha2-256-chunked/1.bin']
  const [fifo, folder, linkToFifo, loop] = replaced.map(key => join(dir, key))
  for (const key of replaced) rmSync(join(dir, key))
  execFileSync('mkfifo', [fifo!])
  mkdirSync(folder!)
  symlinkSync(fifo!, linkToFifo!)
  symlinkSync(loop!, loop!)
  const found = await verifyFolder(entries, dir)
  t.same(found.changed, ['CRC64NVME/1.bin', 'SHA256/1.bin', `sha2-256-chunked/${17 * MiB}.bin`])
  t.same(found.missing, ['sha2-256-chunked/1.bin'])
})

t.test('verifyFolder refuses a folder that is not there', async t => {
  const { entries, dir } = await sample(t)
  await t.rejects(verifyFolder(entries, join(dir, 'nowhere')), { code: 'INVALID_ARGUMENT', message: /no such folder/ })
  await t.rejects(verifyFolder(entries, join(dir, 'é')), { code: 'INVALID_ARGUMENT' })
})

t.test('verifyFolder stops when it is interrupted', async t => {
  const { entries, dir } = await sample(t)
  const controller = new AbortController()
  const onProgress = () => controller.abort()
  await t.rejects(verifyFolder(entries, dir, { signal: controller.signal, onProgress }), { code: 'INTERRUPTED' })
})
