/** A disk whose power can be cut: ext4 in a file, where the test may mount one. */
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { skipTest } from './skips.js'

export interface CuttableDisk {
  readonly path: string
  /** From now on it holds, at the same path, what had been synced, or was written back by chance. */
  cut(): void
}

/** Or `undefined`, after skipping the test with the reason. */
export function cuttableDisk(t: Test, megabytes: number): CuttableDisk | undefined {
  // Not in the test's folder, which tap deletes before the disk is unmounted.
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-power-cut-'))
  const [image, after, path] = ['image', 'after', 'disk'].map(name => join(folder, name)) as [string, string, string]
  mkdirSync(path)
  t.teardown(() => {
    spawnSync('umount', ['-l', path])
    rmSync(folder, { recursive: true, force: true })
  })
  try {
    run('truncate', '-s', `${megabytes}M`, image)
    run('mkfs.ext4', '-q', '-F', image)
    run('mount', '-o', 'loop', image, path)
  } catch (error) {
    skipTest(t, `a disk of ext4 cannot be mounted here (needs root, mkfs.ext4, a loop device): ${error}`)
    return undefined
  }
  return {
    path,
    cut() {
      copyFileSync(image, after)
      run('umount', path)
      run('mount', '-o', 'loop', after, path)
    },
  }
}

function run(command: string, ...args: string[]): void {
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` }
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8', env })
  if (status !== 0) throw error ?? new Error(`${command}: ${stderr.trim()}`)
}
