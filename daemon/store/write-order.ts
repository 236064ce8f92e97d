/**
 * Does the file system keep a deletion before the reuse of what it freed?
 *
 * Where it does not, a file that was deleted just before a power cut can be there again with its old size and times, and have
 * the bytes of another file, written to the freed blocks: its stamp says nothing then. ext4 keeps that order
 * with data=ordered, its default, and with data=journal; XFS, Btrfs and ZFS always do. Of others it is not known.
 */
import { readFileSync, readlinkSync, statfsSync, statSync } from 'node:fs'
import { basename } from 'node:path'

/** statfs(2), f_type. */
const EXT4 = 0xef53
const ORDERED = new Set([0x58465342 /* XFS */, 0x9123683e /* Btrfs */, 0x2fc12fc1 /* ZFS */])

/** False also where it cannot be told. */
export function keepsWriteOrder(folder: string): boolean {
  try {
    const { type } = statfsSync(folder)
    if (ORDERED.has(type)) return true
    return type === EXT4 && isOrdered(readFileSync(`/proc/fs/ext4/${deviceOf(folder)}/options`, 'utf8'))
  } catch {
    // No proc, or a device that is not shown here.
    return false
  }
}

/** What ext4 tells of its options, defaults too, one per line. */
export function isOrdered(options: string): boolean {
  const lines = new Set(options.split('\n'))
  return (lines.has('data=ordered') || lines.has('data=journal')) && !lines.has('nobarrier')
}

/** As in /sys/block. */
function deviceOf(folder: string): string {
  const { dev } = statSync(folder, { bigint: true })
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn)
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn)
  return basename(readlinkSync(`/sys/dev/block/${major}:${minor}`))
}
