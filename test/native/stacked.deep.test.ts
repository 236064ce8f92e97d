/** What stands on a mount and keeps the kernel's names for its files: file handles, and overlays. */
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { cannotMount, run, small } from '../support/daemon.js'
import { noise } from '../support/objects.js'

t.setTimeout(120_000)

const skip =
  cannotMount() ||
  (findBobbinFuse().reason ?? false) ||
  (process.getuid?.() !== 0 && 'needs root, to open file handles and to mount overlays')

/** Takes handles of all paths, has the kernel drop its inodes, and prints what the files hold by handle. */
const BY_HANDLE = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('value', ctypes.c_ubyte * 128)]
root, *keys = sys.argv[1:]
handles = []
for key in keys:
    handle, mount = Handle(bytes=128), ctypes.c_int()
    path = os.path.join(root, key).encode()
    if libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
        sys.exit('name_to_handle_at: ' + os.strerror(ctypes.get_errno()))
    handles.append(handle)
with open('/proc/sys/vm/drop_caches', 'w') as file: file.write('2')
top = os.open(root, os.O_RDONLY)
for key, handle in zip(keys, handles):
    fd = libc.open_by_handle_at(top, ctypes.byref(handle), os.O_RDONLY)
    if fd < 0: sys.exit(key + ': ' + os.strerror(ctypes.get_errno()))
    print(' '.join(sorted(os.listdir(fd))) if os.path.isdir(f'/proc/self/fd/{fd}') else os.read(fd, 100).decode())
    print(os.path.relpath(os.readlink(f'/proc/self/fd/{fd}'), root) if os.path.isdir(f'/proc/self/fd/{fd}') else '-')
`

t.test('file handles are opened after the kernel has dropped its caches (S100)', { skip }, async t => {
  const { daemon, written } = await small(t, { 'a/b/deep': 'deep', top: 'top' }, { transport: 'native' })
  for (const openMode of ['passthrough', 'cached', 'none'] as const) {
    const { path } = await daemon.mount(written, openMode, { openMode })
    const { status, stdout, stderr } = await run('python3', ['-c', BY_HANDLE, path, 'a/b/deep', 'top', 'a/b'])
    t.equal(status, 0, `${openMode}: ${stderr}`)
    t.equal(String(stdout), 'deep\n-\ntop\n-\ndeep\na/b\n', openMode)
  }
})

t.test('a large file that was cold is read through an overlay again and again (S101)', { skip }, async t => {
  const large = noise(9 * 2 ** 20, 1)
  for (const openMode of ['passthrough', 'cached', 'none'] as const) {
    const { daemon, written } = await small(t, { 'd/large': large, small: 'small' }, { transport: 'native' })
    const { path } = await daemon.mount(written, 'mnt', { openMode })
    const at = (name: string) => join(daemon.folder, name)
    // The upper folder may lie on no overlay, which the folder of tests may do.
    for (const name of ['layer', 'merged']) mkdirSync(at(name))
    t.equal((await run('mount', ['-t', 'tmpfs', 'tmpfs', at('layer')])).status, 0)
    t.teardown(() => run('umount', ['-l', at('layer')]))
    for (const name of ['layer/up', 'layer/work']) mkdirSync(at(name))
    const options = `lowerdir=${path},upperdir=${at('layer/up')},workdir=${at('layer/work')}`
    const { status, stderr } = await run('mount', ['-t', 'overlay', 'overlay', '-o', options, at('merged')])
    t.equal(status, 0, stderr)
    t.teardown(() => run('umount', ['-l', at('merged')]))
    for (let time = 0; time < 3; time++) {
      const compared = await run('cmp', [at('merged/d/large'), at('registry/test/small/d/large')])
      t.match(compared, { status: 0, stderr: '' }, `${openMode}, reading ${time}`)
    }
    t.equal((await run('sh', ['-c', 'echo x > "$0/new" && echo y >> "$0/small"', at('merged')])).status, 0)
    t.equal((await run('umount', [at('merged')])).status, 0)
  }
})
