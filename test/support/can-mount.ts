import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'

/** Why nothing can be mounted here, or `false`: for the `skip` of tests. */
export function cannotMount(): string | false {
  if (!existsSync('/dev/fuse')) return 'there is no /dev/fuse here'
  if (process.getuid?.() === 0) return hasSysAdmin() ? false : 'root without CAP_SYS_ADMIN'
  const hasHelper = ['fusermount3', 'fusermount'].some(name => spawnSync(name, ['-V']).status === 0)
  return hasHelper ? false : 'neither root nor fusermount'
}

function hasSysAdmin(): boolean {
  const effective = /^CapEff:\s*(\w+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]
  return (BigInt(`0x${effective}`) & (1n << 21n)) !== 0n
}
