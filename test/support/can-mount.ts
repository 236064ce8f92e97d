import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'

/** Why nothing can be mounted here, or `false`: for the `skip` of tests. */
export function cannotMount(): string | false {
  if (!existsSync('/dev/fuse')) return 'there is no /dev/fuse here'
  if (process.getuid?.() === 0) return false
  const hasHelper = ['fusermount3', 'fusermount'].some(name => spawnSync(name, ['-V']).status === 0)
  return hasHelper ? false : 'neither root nor fusermount'
}
