/** The resume point of a stream (protocol.md, The cursor): bound to its plan and top hash, and to no world size. */
import { createHash } from 'node:crypto'
import { BobbinError } from '../../daemon/model/index.js'

export interface Cursor {
  readonly topHash: string
  readonly planId: string
  readonly epoch: number
  /** Of the next sample in the epoch; a multiple of the global batch. */
  readonly position: number
}

const VERSION = 1
const TOP_HASH_AT = 1
const PLAN_AT = 33
const EPOCH_AT = 65
const POSITION_AT = 69
const CHECK_AT = 77
const CURSOR_BYTES = 85

export function formatCursor({ topHash, planId, epoch, position }: Cursor): string {
  const bytes = Buffer.alloc(CURSOR_BYTES)
  bytes.writeUInt8(VERSION)
  bytes.write(topHash, TOP_HASH_AT, 'hex')
  bytes.write(planId, PLAN_AT, 'hex')
  bytes.writeUInt32BE(epoch, EPOCH_AT)
  bytes.writeBigUInt64BE(BigInt(position), POSITION_AT)
  checkOf(bytes).copy(bytes, CHECK_AT)
  return bytes.toString('base64url')
}

/** Throws INVALID_ARGUMENT for what is no cursor, CURSOR_FOREIGN for one of another plan or top hash. */
export function parseCursor(text: string, { topHash, planId }: Pick<Cursor, 'topHash' | 'planId'>): Cursor {
  const bytes = Buffer.from(text, 'base64url')
  if (bytes.length !== CURSOR_BYTES || bytes.toString('base64url') !== text || bytes[0] !== VERSION)
    throw new BobbinError('INVALID_ARGUMENT', `not a cursor: ${JSON.stringify(text.slice(0, 120))}`)
  if (!checkOf(bytes).equals(bytes.subarray(CHECK_AT)))
    throw new BobbinError('INVALID_ARGUMENT', 'the cursor is damaged')
  const found = {
    topHash: bytes.toString('hex', TOP_HASH_AT, PLAN_AT),
    planId: bytes.toString('hex', PLAN_AT, EPOCH_AT),
    epoch: bytes.readUInt32BE(EPOCH_AT),
    position: Number(bytes.readBigUInt64BE(POSITION_AT)),
  }
  if (found.topHash !== topHash)
    throw new BobbinError(
      'CURSOR_FOREIGN',
      `the cursor belongs to the package ${found.topHash}, this plan to ${topHash}`,
    )
  if (found.planId !== planId)
    throw new BobbinError('CURSOR_FOREIGN', `the cursor belongs to the plan ${found.planId}, this plan is ${planId}`)
  return found
}

function checkOf(bytes: Buffer): Buffer {
  return createHash('sha256')
    .update('bobbin-cursor-1\0')
    .update(bytes.subarray(0, CHECK_AT))
    .digest()
    .subarray(0, CURSOR_BYTES - CHECK_AT)
}
