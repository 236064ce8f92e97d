/**
 * A disk that takes what is written to it and then loses it: ext4 in a sparse file on a tmpfs that has no room
 * left. Writing to a file succeeds, since that ends in the page cache; writing back fails.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { skipTest } from './skips.js'

export interface LosingDisk {
  readonly path: string
  /** From now on no new block reaches it. */
  lose(): void
  heal(): void
}

/** What the page cache has of a file leaves it, as it would when memory is needed. */
export function forgetPages(path: string): void {
  run('dd', `if=${path}`, 'iflag=nocache', 'count=0', 'status=none')
}

/** Or `undefined`, after skipping the test with the reason. */
export function losingDisk(t: Test, megabytes: number): LosingDisk | undefined {
  // Not in the test's folder, which tap deletes before the disk is unmounted.
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-losing-disk-'))
  const [below, path] = ['below', 'disk'].map(name => join(folder, name)) as [string, string]
  const image = join(below, 'image')
  for (const made of [below, path]) mkdirSync(made)
  t.teardown(() => {
    for (const mountpoint of [path, below]) spawnSync('umount', ['-l', mountpoint])
    rmSync(folder, { recursive: true, force: true })
  })
  const roomFor = (kilobytes: number) => run('mount', '-o', `remount,size=${kilobytes}k`, below)
  try {
    run('mount', '-t', 'tmpfs', '-o', `size=${2 * megabytes}m`, 'tmpfs', below)
    run('truncate', '-s', `${megabytes}M`, image)
    // Without a journal, whose own loss would make the file system read-only instead.
    run('mkfs.ext4', '-q', '-F', '-O', '^has_journal', '-E', 'lazy_itable_init=0,nodiscard', image)
    run('mount', '-o', 'loop', image, path)
  } catch (error) {
    skipTest(t, `a disk of ext4 cannot be mounted here (needs root, mkfs.ext4, a loop device): ${error}`)
    return undefined
  }
  return {
    path,
    lose() {
      run('sync', '-f', path)
      roomFor(statSync(image).blocks / 2)
    },
    heal: () => roomFor(2 * megabytes * 1024),
  }
}

function run(command: string, ...args: string[]): void {
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` }
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8', env })
  if (status !== 0) throw error ?? new Error(`${command}: ${stderr.trim()}`)
}
