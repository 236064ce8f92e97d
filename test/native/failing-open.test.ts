/** Files whose bytes cannot be had, and programs that map them. */
import { join } from 'node:path'
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { cannotMount, run, small } from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { noise } from '../support/objects.js'

const skip = cannotMount() || (findBobbinFuse().reason ?? false)

/** Says the errno that opening has given; a mapped page that cannot be had kills it by SIGBUS. */
const MAP = `
import mmap, sys
try:
    with open(sys.argv[1], 'rb') as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped: mapped[-1]
except OSError as error:
    print(error.errno)
`

t.test(
  'a file whose object cannot be had is not opened, so nobody maps it and dies of SIGBUS (S108)',
  { skip },
  async t => {
    const server = await startHeldServer()
    t.teardown(() => server.stop())
    const [large, little] = [noise(20 * 2 ** 20, 1), noise(5000, 2)]
    const files = {
      'large-gone': { bytes: large, physicalKey: 's3://held/none' },
      'large-silent': { bytes: large.subarray(1), physicalKey: server.add('silent', large.subarray(1)) },
      'small-gone': { bytes: little, physicalKey: 's3://held/no-other' },
    }
    const { daemon, written } = await small(t, files, { transport: 'native', env: server.env, ioTimeoutMs: 2000 })
    server.hold('silent')
    for (const openMode of ['passthrough', 'cached'] as const) {
      const { path, facts } = await daemon.mount(written, openMode, { openMode })
      t.equal(facts.openMode, openMode)
      for (const key of Object.keys(files)) {
        const { status, stdout, stderr } = await run('python3', ['-c', MAP, join(path, key)])
        t.equal(status, 0, `${openMode}, ${key}: ${stderr}`)
        t.equal(String(stdout).trim(), '5', 'EIO')
      }
    }
    server.release()
    const path = join(daemon.folder, 'passthrough', 'large-silent')
    const inode = async () => String((await run('stat', ['-c', '%i', path])).stdout)
    const before = await inode()
    t.equal((await run('python3', ['-c', MAP, path])).status, 0)
    t.equal(await inode(), before)
  },
)

t.test('without opens it is the read that fails', { skip }, async t => {
  const { daemon, written } = await small(
    t,
    { gone: { bytes: noise(5000), physicalKey: 'file:///no/such/file' } },
    { transport: 'native' },
  )
  const { path } = await daemon.mount(written, 'mnt', { openMode: 'none' })
  const { status, stderr } = await run('cat', [join(path, 'gone')])
  t.equal(status, 1)
  t.match(stderr, /Input\/output error/)
})
