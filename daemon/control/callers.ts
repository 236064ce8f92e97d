/**
 * Users other than the owner, who mount on folders of their own (bobbin-fuse --mounts-for-group). bobbin-fuse hands their
 * lines on and knows who they are; it makes their mounts on their folders only, and as theirs.
 *
 * Here is decided what they may have: the packages that the daemon leases to others, and of those no byte from outside
 * of the places that were allowed. The daemon looks at no path for them, since it may see more than they.
 */
import { Value } from '@sinclair/typebox/value'
import { BobbinError, hasCode, type Log } from '../model/index.js'
import type { Caller } from '../mount/native.js'
import type { Concealer } from './conceal.js'
import { type Problem, problemOf } from './errors.js'
import type { Mounts } from './mounts.js'
import { CallerRequest, type MountFacts } from './schema.js'
import type { ServedMounts } from './served-mounts.js'

/** What goes back, as one line of JSON. */
export type CallerAnswer = { readonly facts: MountFacts | null } | { readonly problem: Problem }

export interface CallersOptions {
  readonly mounts: Mounts
  readonly servedMounts: ServedMounts
  readonly concealer: Concealer
  readonly log: Log
}

/** Each has threads and memory of its own. */
const MOUNTS_PER_USER_MAX = 16

/** Never throws: what went wrong is the answer. */
export async function answerCaller(caller: Caller, line: string, options: CallersOptions): Promise<string> {
  const { concealer, log } = options
  try {
    const facts = await carryOut(caller, line, options)
    return JSON.stringify({ facts } satisfies CallerAnswer)
  } catch (error) {
    log.warn({ uid: caller.uid, error: String(error) }, 'a caller was refused')
    // About the folder that they named themselves, and as bobbin-fuse saw it.
    const isTold = hasCode(error, 'MOUNTPOINT_UNUSABLE', 'ALREADY_MOUNTED', 'NOT_MOUNTED', 'FUSE_UNAVAILABLE')
    return JSON.stringify({ problem: problemOf(isTold ? error : concealer.conceal(error)) } satisfies CallerAnswer)
  }
}

async function carryOut(
  { number, uid }: Caller,
  line: string,
  { mounts, servedMounts }: CallersOptions,
): Promise<MountFacts | null> {
  const request = parse(line)
  if ('unmount' in request) {
    await mounts.removeOwn(request.unmount.mountpoint, request.unmount.force ?? false, uid)
    return null
  }
  const served = servedMounts.now
  if (!served.admits(request.mount))
    throw new BobbinError('NOT_SERVED', 'that package is not served to others here: its owner allows it (BOBBIN_ALLOW)')
  if (mounts.list().filter(mount => mount.uid === uid).length >= MOUNTS_PER_USER_MAX)
    throw new BobbinError('BUSY', `you have ${MOUNTS_PER_USER_MAX} mounts here already: unmount one first`)
  return mounts.addFor({ number, uid, places: served.placesOf(request.mount) }, request.mount)
}

function parse(line: string): CallerRequest {
  try {
    const request: unknown = JSON.parse(line)
    if (Value.Check(CallerRequest, request)) return request
  } catch {
    // Told below.
  }
  throw new BobbinError('INVALID_ARGUMENT', 'the line is not a request to mount or to unmount')
}
