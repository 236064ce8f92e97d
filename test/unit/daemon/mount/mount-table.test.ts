import { mkdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { BobbinError, ERROR_CODES } from '../../../../daemon/model/index.js'
import { errnoOf } from '../../../../daemon/mount/errno.js'
import { checkMountpoint, mountAt, readMountTable, resolveMountpoint } from '../../../../daemon/mount/mount-table.js'

t.test('readMountTable reads escapes, optional fields and types', async t => {
  const text = [
    '22 28 0:20 / /sys rw,nosuid shared:7 master:1 - sysfs sysfs rw',
    '36 35 98:0 /sub /mnt/two\\040words rw - fuse.bobbin bobbin:a/b@00 ro,user_id=0',
    '37 35 0:41 / /mnt/tab\\011line\\012back\\134slash\\043 rw shared:1 - tmpfs none rw',
    '38 35 0:42 / /mnt/caf\u00e9-\u{1f9f5} rw - ext4 /dev/sda rw',
    '',
  ].join('\n')
  t.same(readMountTable(text), [
    { id: 22, mountpoint: '/sys', type: 'sysfs', source: 'sysfs' },
    { id: 36, mountpoint: '/mnt/two words', type: 'fuse.bobbin', source: 'bobbin:a/b@00', userId: 0 },
    { id: 37, mountpoint: '/mnt/tab\tline\nback\\slash#', type: 'tmpfs', source: 'none' },
    { id: 38, mountpoint: '/mnt/caf\u00e9-\u{1f9f5}', type: 'ext4', source: '/dev/sda' },
  ])
})

t.test('mountAt finds real mounts, and only them', async t => {
  t.match(mountAt('/proc'), { mountpoint: '/proc', type: 'proc' })
  t.equal(mountAt('/proc/self'), undefined)
})

t.test('resolveMountpoint follows links, but never into a mount', async t => {
  const folder = t.testdir({ real: {} })
  await symlink(join(folder, 'real'), join(folder, 'link'))
  t.equal(await resolveMountpoint(join(folder, 'link')), join(folder, 'real'))
  t.equal(await resolveMountpoint(`${join(folder, 'real')}/`), join(folder, 'real'))
  t.equal(await resolveMountpoint('/proc'), '/proc')
  await t.rejects(resolveMountpoint(join(folder, 'none')), { code: 'MOUNTPOINT_UNUSABLE', message: /does not exist/ })
  await t.rejects(resolveMountpoint(join(folder, 'none', 'below')), { code: 'MOUNTPOINT_UNUSABLE' })
})

t.test('checkMountpoint says what is wrong with a mountpoint', async t => {
  const folder = t.testdir({ empty: {}, file: '' })
  await mkdir(join(folder, 'full'))
  await writeFile(join(folder, 'full', '.hidden'), '')
  await checkMountpoint(join(folder, 'empty'))
  await t.rejects(checkMountpoint(join(folder, 'file')), { code: 'MOUNTPOINT_UNUSABLE', message: /is not a folder/ })
  await t.rejects(checkMountpoint(join(folder, 'full')), { code: 'MOUNTPOINT_UNUSABLE', message: /\.hidden/ })
  await t.rejects(checkMountpoint(join(folder, 'none')), { code: 'MOUNTPOINT_UNUSABLE', message: /mkdir/ })
  await t.rejects(checkMountpoint('/proc'), { code: 'ALREADY_MOUNTED', message: /another folder/ })
})

t.test('errnoOf has a number for every code, and EIO for bugs', async t => {
  for (const code of ERROR_CODES) t.ok(errnoOf(new BobbinError(code, 'x')) > 0, code)
  t.equal(errnoOf(new BobbinError('ENTRY_NOT_FOUND', 'x')), 2)
  t.equal(errnoOf(new BobbinError('READ_ONLY', 'x')), 30)
  t.equal(errnoOf(new BobbinError('STORE_FULL', 'x')), 28)
  t.equal(errnoOf(new Error('x')), 5)
})
