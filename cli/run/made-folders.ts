/**
 * The folders that a run makes for its mountpoints. A user may have made the same folder before the run, or may put another one
 * there later: a run removes a folder only when the run itself made it, nobody has changed it since, and it is empty.
 */
import { type BigIntStats, lstatSync, mkdirSync, rmdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { localError, systemCode } from '../../daemon/model/index.js'
import type { RunFacts } from '../record/run-facts.js'

export type MadeFolder = NonNullable<RunFacts['madeFolders']>[number]

/** Makes a folder and those above it that are missing. Returns the folders that were made here, the outermost first. Throws LOCAL_IO. */
export function makeFolders(path: string): MadeFolder[] {
  const made: MadeFolder[] = []
  try {
    for (const folder of missingFrom(path)) if (make(folder)) made.push({ path: folder, stamp: stampOf(folder)! })
    // A file in its place is an error here, and a folder is not.
    mkdirSync(path, { recursive: true })
    return made
  } catch (error) {
    removeFolders(made)
    throw localError(`make the mountpoint ${path}`, error)
  }
}

/** The innermost first. What has another stamp, or something in it, stays. */
export function removeFolders(made: readonly MadeFolder[]): void {
  for (const { path, stamp } of [...made].reverse()) {
    try {
      if (stampOf(path) === stamp) rmdirSync(path)
    } catch {
      // Somebody has put something in it, or has mounted something there.
    }
  }
}

function missingFrom(path: string): string[] {
  if (lstatSync(path, { throwIfNoEntry: false }) !== undefined || dirname(path) === path) return []
  return [...missingFrom(dirname(path)), path]
}

/** False: somebody else was faster, so the folder is theirs. */
function make(path: string): boolean {
  try {
    mkdirSync(path)
    return true
  } catch (error) {
    if (systemCode(error) === 'EEXIST') return false
    throw error
  }
}

/** Which folder it is, and what its maker or somebody later gave it: a folder that a user has taken over has another one. */
function stampOf(path: string): string | undefined {
  const stats = lstatSync(path, { bigint: true, throwIfNoEntry: false }) as BigIntStats | undefined
  if (stats === undefined) return undefined
  const { dev, ino, birthtimeNs, mode, uid, gid } = stats
  return [dev, ino, birthtimeNs, mode, uid, gid].join(' ')
}
