/** A disk that is full soon: a tmpfs of a few megabytes, where the test may mount one. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { skipTest } from './skips.js'

/** Gives the folder, or `undefined` after skipping the test with the reason. */
export function smallDisk(t: Test, megabytes: number): string | undefined {
  // Not in the test's folder, which tap deletes before the disk is unmounted.
  const path = mkdtempSync(join(tmpdir(), 'bobbin-small-disk-'))
  const { status, stderr } = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m,mode=0750`, 'tmpfs', path], {
    encoding: 'utf8',
  })
  if (status !== 0) {
    rmdirSync(path)
    skipTest(t, `a small disk cannot be mounted here (needs root): ${stderr?.trim()}`)
    return undefined
  }
  t.teardown(() => {
    spawnSync('umount', ['-l', path])
    rmdirSync(path)
  })
  return path
}
