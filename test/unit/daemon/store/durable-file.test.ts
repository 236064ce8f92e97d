import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  DurableFile,
  makeFolderDurably,
  makeFolderDurablySync,
  writeDurably,
  writeDurablySync,
} from '../../../../daemon/store/index.js'
import { cuttableDisk } from '../../../support/power-cut.js'

t.test('writeDurably puts the whole content in place of what lay there, and leaves nothing else', async t => {
  const folder = t.testdir({ there: 'before' })
  await writeDurably(join(folder, 'there'), 'after')
  writeDurablySync(join(folder, 'new'), Buffer.from([1, 2, 3]), { mode: 0o600 })
  t.equal(readFileSync(join(folder, 'there'), 'utf8'), 'after')
  t.same(readFileSync(join(folder, 'new')), Buffer.from([1, 2, 3]))
  t.equal(statSync(join(folder, 'new')).mode & 0o777, 0o600)
  t.same(readdirSync(folder).sort(), ['new', 'there'])
})

t.test('a DurableFile that is not committed leaves what lay there', async t => {
  const folder = t.testdir({ there: 'before' })
  const file = await DurableFile.create(join(folder, 'there'))
  await file.write('half ')
  await file.write('of it')
  await file.discard()
  t.equal(readFileSync(join(folder, 'there'), 'utf8'), 'before')
  t.same(readdirSync(folder), ['there'])
})

t.test('a DurableFile that cannot come into its place throws, and leaves no temporary file', async t => {
  const folder = t.testdir({ taken: { file: '' } })
  const file = await DurableFile.create(join(folder, 'taken'))
  await file.write('content')
  await t.rejects(file.commit(), { code: 'LOCAL_IO' })
  await file.discard()
  t.throws(() => writeDurablySync(join(folder, 'taken'), 'content'), { code: 'LOCAL_IO' })
  t.throws(() => writeDurablySync(join(folder, 'missing', 'file'), 'content'), { code: 'LOCAL_IO' })
  t.same(readdirSync(folder), ['taken'])
})

const mayMount = process.getuid?.() === 0
t.test(
  'what was written durably is there after a power cut, folders included',
  { skip: mayMount ? false : 'needs root' },
  async t => {
    const disk = cuttableDisk(t, 32)
    if (disk === undefined) return
    mkdirSync(join(disk.path, 'plain'))
    writeFileSync(join(disk.path, 'plain', 'file'), 'nobody waited for the disk')
    await makeFolderDurably(join(disk.path, 'a', 'b'))
    makeFolderDurablySync(join(disk.path, 'a', 'c'))
    await writeDurably(join(disk.path, 'a', 'b', 'first'), 'first')
    writeDurablySync(join(disk.path, 'a', 'c', 'second'), 'second')
    const file = await DurableFile.create(join(disk.path, 'a', 'b', 'third'))
    for (let i = 0; i < 1000; i++) await file.write('0123456789')
    await file.commit()
    // ext4's journal is one: what came before an fsync comes along. So this one is behind all of them.
    writeFileSync(join(disk.path, 'a', 'later'), 'nobody waited for the disk')
    disk.cut()
    t.equal(readFileSync(join(disk.path, 'a', 'b', 'first'), 'utf8'), 'first')
    t.equal(readFileSync(join(disk.path, 'a', 'c', 'second'), 'utf8'), 'second')
    t.equal(readFileSync(join(disk.path, 'a', 'b', 'third'), 'utf8'), '0123456789'.repeat(1000))
    t.notOk(existsSync(join(disk.path, 'a', 'later')), 'the power was really cut')
  },
)
