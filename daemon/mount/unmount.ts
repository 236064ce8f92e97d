/** Unmounting, through the programs that everybody has; none of them needs an answer from us but a live mount's. */
import { spawn } from 'node:child_process'
import { BobbinError } from '../model/index.js'

const TIMEOUT_MS = 10_000

/**
 * Unmounts what is on top at a path; nothing is there: done. `isForced`: it is detached now, also
 * when it is in use, and lasts until its last file is closed. Throws ALREADY_MOUNTED when it is in
 * use, LOCAL_IO.
 */
export async function unmountPath(mountpoint: string, { isForced }: { readonly isForced: boolean }): Promise<void> {
  const commands =
    process.getuid?.() === 0
      ? [['umount', ...(isForced ? ['-l'] : []), '--', mountpoint]]
      : ['fusermount3', 'fusermount'].map(name => [name, isForced ? '-uz' : '-u', '--', mountpoint])
  let said = ''
  for (const [command, ...args] of commands) {
    const { status, stderr } = await runCommand(command!, args)
    if (status === 0) return
    if (status !== undefined) said = stderr
  }
  if (/busy/i.test(said)) {
    throw new BobbinError(
      'ALREADY_MOUNTED',
      `${mountpoint} is in use: close what reads from it (lsof +f -- ${mountpoint}), or give --force`,
    )
  }
  if (/not (?:found|mounted)/i.test(said)) return
  throw new BobbinError('LOCAL_IO', `cannot unmount ${mountpoint}: ${said.trim() || 'no umount or fusermount program'}`)
}

/** `status` is undefined when there is no such program. */
function runCommand(command: string, args: readonly string[]): Promise<{ status: number | undefined; stderr: string }> {
  return new Promise(resolve => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'ignore', 'pipe'],
      timeout: TIMEOUT_MS,
      env: { ...process.env, LC_ALL: 'C' },
    })
    let stderr = ''
    child.stderr.on('data', chunk => {
      stderr += chunk
    })
    child.once('error', () => resolve({ status: undefined, stderr }))
    child.once('close', status => resolve({ status: status ?? 1, stderr }))
  })
}
