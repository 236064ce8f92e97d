/**
 * Suites that no one here wrote, on a mount in each open mode: fio, which verifies what it has written
 * itself before it was packed, through every way to read that Linux has; and Go's testing/fstest.
 *
 * pjdfstest and fsx are not among them: both create what they test, so on a filesystem that is read-only
 * from its first moment they test nothing.
 */
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { OPEN_MODES, type OpenMode } from '../../daemon/mount/transport.js'
import { runProgram } from '../support/cli.js'
import { cannotMount, startDaemon, testFolder } from '../support/daemon.js'
import { noise } from '../support/objects.js'
import { repository } from '../support/parts.js'
import { writeRegistry } from '../support/registry.js'
import { skipPart } from '../support/skips.js'

t.setTimeout(600_000)

/** Of fio's file: above the size up to which an open waits for the whole object. */
const FIO_BYTES = 12 * 2 ** 20
const ENGINES = ['psync', 'pvsync2', 'mmap', 'splice', 'libaio', 'posixaio', 'io_uring'] as const

const skip = cannotMount() || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')
const lacks = (program: string, ...args: string[]) => spawnSync(program, args).status !== 0 && `no ${program} here`
const modes = process.getuid?.() === 0 ? OPEN_MODES : OPEN_MODES.filter(mode => mode !== 'passthrough')

interface Reading {
  readonly engine: string
  readonly order: string
  readonly direct: boolean
}

const READINGS: readonly Reading[] = ENGINES.flatMap(engine =>
  ['read', 'randread'].flatMap(order => [
    { engine, order, direct: false },
    // A mapping has no O_DIRECT.
    ...(engine === 'mmap' ? [] : [{ engine, order, direct: true }]),
  ]),
)

function titleOf({ engine, order, direct }: Reading): string {
  return `${engine}, ${order}${direct ? ', O_DIRECT' : ''}`
}

async function writeVerifiable(t: Test, path: string): Promise<void> {
  const { status, stdout, stderr } = await runProgram('fio', [
    ...['--name=write', `--filename=${path}`, `--size=${FIO_BYTES}`, '--rw=write', '--bs=4k'],
    ...['--verify=crc32c', '--do_verify=0', '--verify_state_save=0'],
  ])
  t.equal(status, 0, 'fio writes', { stdout, stderr })
}

/** Reads the whole file in pieces of 4 to 256 KiB, four at a time where the engine can. */
function verify(path: string, { engine, order, direct }: Reading) {
  return runProgram('fio', [
    ...['--readonly', '--name=read', `--filename=${path}`, `--size=${FIO_BYTES}`, `--rw=${order}`],
    ...['--bsrange=4k-256k', '--blockalign=4k', `--ioengine=${engine}`, '--iodepth=4', `--direct=${direct ? 1 : 0}`],
    ...['--verify=crc32c', '--verify_interval=4k', '--verify_fatal=1', '--invalidate=0'],
  ])
}

async function mounted(t: Test, openMode: OpenMode, files: Parameters<typeof writeRegistry>[2]) {
  const folder = testFolder(t)
  const written = await writeRegistry(join(folder, 'registry'), 'test/foreign', files)
  const daemon = await startDaemon(t, { folder, transport: 'native', openMode })
  const { path, facts } = await daemon.mount(written, 'mnt')
  t.equal(facts.openMode, openMode)
  return { path, daemon, written }
}

t.test(
  'fio verifies what it has written, by every way to read',
  { skip: skip || lacks('fio', '--version') },
  async t => {
    const folder = testFolder(t)
    const source = join(folder, 'source')
    await writeVerifiable(t, source)
    const bytes = readFileSync(source)
    const damaged = join(folder, 'damaged')
    writeFileSync(damaged, bytes.fill(0, 7_000_100, 7_000_116))
    t.not((await verify(damaged, READINGS[0]!)).status, 0, 'it sees sixteen wrong bytes')

    const possible: Reading[] = []
    for (const reading of READINGS) {
      const { status, stderr } = await verify(source, reading)
      if (status === 0) possible.push(reading)
      else skipPart(t, titleOf(reading), `an ordinary file here cannot be read so: ${stderr.split('\n')[0]}`)
    }
    for (const mode of modes) {
      await t.test(mode, async t => {
        const { path } = await mounted(t, mode, { 'fio.bin': readFileSync(source) })
        for (const reading of possible) {
          const { status, stdout, stderr } = await verify(join(path, 'fio.bin'), reading)
          t.equal(status, 0, titleOf(reading), { stdout, stderr })
        }
      })
    }
  },
)

t.test("Go's testing/fstest has nothing against it", { skip: skip || lacks('go', 'version') }, async t => {
  const files: Record<string, Uint8Array | string> = {
    empty: '',
    'a/b/c/deep': 'deep',
    'names/with spaces': 'x',
    'names/\u00e9': 'composed',
    'names/e\u0301': 'decomposed',
    'names/\u{1f9f5}': 'thread',
    [`names/${'l'.repeat(255)}`]: 'long',
  }
  for (const size of [1, 511, 4095, 4096, 4097, 131_071, 131_073]) files[`sizes/${size}`] = noise(size, size)
  for (let i = 0; i < 300; i++) files[`many/${i}`] = `${i}`
  const program = join(testFolder(t), 'fstest')
  const built = await runProgram('go', ['build', '-o', program, join(repository, 'test/fuse/fstest.go')])
  if (!t.equal(built.status, 0, 'it builds', { stderr: built.stderr })) return
  for (const mode of modes) {
    await t.test(mode, async t => {
      const { path } = await mounted(t, mode, files)
      const { status, stdout, stderr } = await runProgram(program, [path, ...Object.keys(files)])
      t.equal(status, 0, 'it agrees', { stdout, stderr })
      const wrong = await runProgram(program, [path, 'not/there'])
      t.match(wrong, { status: 1, stdout: /expected but not found: not\/there/ }, 'and would say otherwise')
    })
  }
})
