/**
 * Unmounting what no bobbin-fuse unmounts for us; none of it needs an answer from us but a live mount's.
 *
 * Root goes by bobbin-fuse, which is sure of the mount whatever becomes of the path meanwhile; without it, by
 * umount(8), which takes a path wherever it leads. Everybody else goes by fusermount3: it unmounts only what that
 * user may unmount anyway.
 */
import { spawn } from 'node:child_process'
import { BobbinError } from '../model/index.js'
import { mountAt } from './mount-table.js'

const TIMEOUT_MS = 10_000

/** How `bobbin-fuse --unmount` ends (native/session/leftover.hpp). */
const BY_BOBBIN_FUSE = { 0: 'done', 3: 'done', 4: 'busy', 5: 'other' } as const

type Outcome = 'done' | 'busy' | 'other' | 'failed'

export interface UnmountOptions {
  /** It is detached now, also when it is in use, and lasts until its last file is closed. */
  readonly isForced: boolean
  /** A bobbin-fuse, where there is one. */
  readonly program: string | undefined
}

/**
 * Unmounts a mount of ours, on top at a path; nothing is there: done. Throws ALREADY_MOUNTED when it is in use, or
 * when something else is mounted there, on it or inside it, LOCAL_IO.
 */
export async function unmountPath(mountpoint: string, { isForced, program }: UnmountOptions): Promise<void> {
  const isRoot = process.getuid?.() === 0
  const { outcome, said } =
    isRoot && program !== undefined
      ? await unmountWalked(program, mountpoint, isForced)
      : await unmountByPath(mountpoint, isForced, isRoot)
  switch (outcome) {
    case 'done':
      return
    case 'busy':
      throw new BobbinError(
        'ALREADY_MOUNTED',
        `${mountpoint} is in use: end the programs that read from it (lsof +f -- ${mountpoint}), or pass --force`,
      )
    case 'other':
      throw new BobbinError('ALREADY_MOUNTED', `cannot unmount ${mountpoint}: ${said}`)
    case 'failed':
      throw new BobbinError('LOCAL_IO', `cannot unmount ${mountpoint}: ${said || 'no umount or fusermount program'}`)
    default:
      outcome satisfies never
  }
}

interface Told {
  readonly outcome: Outcome
  readonly said: string
}

async function unmountWalked(program: string, mountpoint: string, isForced: boolean): Promise<Told> {
  const id = mountAt(mountpoint)?.id
  if (id === undefined) return { outcome: 'done', said: '' }
  const args = ['--unmount', mountpoint, '--mount-id', String(id), ...(isForced ? ['--lazy'] : [])]
  const { status, stderr } = await runCommand(program, args)
  const outcome = BY_BOBBIN_FUSE[status as keyof typeof BY_BOBBIN_FUSE] ?? 'failed'
  return { outcome, said: stderr.trim() || `${program} ended with ${status}` }
}

async function unmountByPath(mountpoint: string, isForced: boolean, isRoot: boolean): Promise<Told> {
  const commands = isRoot
    ? [['umount', ...(isForced ? ['-l'] : []), '--', mountpoint]]
    : ['fusermount3', 'fusermount'].map(name => [name, isForced ? '-uz' : '-u', '--', mountpoint])
  let said = ''
  for (const [command, ...args] of commands) {
    const { status, stderr } = await runCommand(command!, args)
    if (status === 0) return { outcome: 'done', said }
    if (status !== undefined) said = stderr.trim()
  }
  if (/busy/i.test(said)) return { outcome: 'busy', said }
  return { outcome: /not (?:found|mounted)/i.test(said) ? 'done' : 'failed', said }
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
