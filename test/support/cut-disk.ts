/**
 * A disk whose power is cut again and again while it is written to: its image is copied as it is at one moment, and looked
 * at as a machine would find it after that moment.
 *
 * ext4 lies in an image on another ext4, which is frozen while the image is copied: so no write falls between two
 * parts of the copy, and what ext4 had in memory is lost.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { skipTest } from './skips.js'

export interface CutDisk {
  readonly path: string
  /** Copies the image now, and shows what a machine would find on it. */
  cut<T>(look: (path: string) => Promise<T>): Promise<T>
}

/** Or `undefined`, after skipping the test with the reason. */
export function cutDisk(t: Test, megabytes: number, options = 'data=ordered'): CutDisk | undefined {
  const mountOptions = `loop,commit=1,${options}`
  // Not in the test's folder, which tap deletes before the disk is unmounted.
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-cut-disk-'))
  const [below, copies, path, after] = ['below', 'copies', 'disk', 'after'].map(name => join(folder, name)) as [
    string,
    string,
    string,
    string,
  ]
  const [outer, image, copy] = [join(folder, 'outer'), join(below, 'image'), join(copies, 'image')]
  for (const made of [below, copies, path, after]) mkdirSync(made)
  t.teardown(() => {
    spawnSync('fsfreeze', ['-u', below], { env: ENV })
    for (const mountpoint of [after, path, below, copies]) spawnSync('umount', ['-l', mountpoint])
    rmSync(folder, { recursive: true, force: true })
  })
  try {
    run(`mount -t tmpfs -o size=${2 * megabytes}m tmpfs '${copies}'
      truncate -s ${2 * megabytes}M '${outer}'
      mkfs.ext4 -q -F '${outer}'
      mount -o loop,noatime '${outer}' '${below}'
      truncate -s ${megabytes}M '${image}'
      mkfs.ext4 -q -F '${image}'
      mount -o ${mountOptions} '${image}' '${path}'
      command -v fsfreeze >&2`)
  } catch (error) {
    skipTest(t, `two disks of ext4 cannot be mounted here (needs root, mkfs.ext4, fsfreeze, loop devices): ${error}`)
    return undefined
  }
  return {
    path,
    async cut(look) {
      run(`fsfreeze -f '${below}'
        cp --sparse=always '${image}' '${copy}' || { fsfreeze -u '${below}'; exit 1; }
        fsfreeze -u '${below}'
        mount -o ${mountOptions} '${copy}' '${after}'`)
      try {
        return await look(after)
      } finally {
        // Another program of this machine may look at all mounts just now.
        run(`for i in 1 2 3 4 5 6 7 8 9; do umount '${after}' && exit 0; sleep 0.5; done; umount '${after}'`)
      }
    },
  }
}

const ENV = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` }

function run(script: string): void {
  const { status, stderr, error } = spawnSync('sh', ['-ec', script], { encoding: 'utf8', env: ENV })
  if (status !== 0) throw error ?? new Error(stderr.trim())
}
