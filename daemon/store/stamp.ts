/**
 * What a file looked like when its bytes were checked. As long as a file has the same stamp, it is
 * taken to have the same bytes: whoever writes to it, by whatever means, moves its ctime.
 *
 * One hole is known: ctime moves by ticks of the kernel's clock (4 ms or less), so a change in the
 * very tick of the stamp is not seen until the next full check.
 */
import type { BigIntStats } from 'node:fs'
import type { Brand } from '../model/index.js'

/** `<ino>:<size>:<mtime ns>:<ctime ns>` */
export type Stamp = Brand<string, 'Stamp'>

const STAMP = /^\d+:(\d+):-?\d+:-?\d+$/

export function stampOf(stats: BigIntStats): Stamp {
  return `${stats.ino}:${stats.size}:${stats.mtimeNs}:${stats.ctimeNs}` as Stamp
}

/** The numbers of a stamp. */
export function parseStamp(stamp: Stamp): { inode: bigint; size: bigint; mtimeNs: bigint; ctimeNs: bigint } {
  const [inode = 0n, size = 0n, mtimeNs = 0n, ctimeNs = 0n] = stamp.split(':').map(BigInt)
  return { inode, size, mtimeNs, ctimeNs }
}

export function isStampOfSize(text: string, size: number): text is Stamp {
  return STAMP.exec(text)?.[1] === String(size)
}
