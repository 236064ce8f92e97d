import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { localError } from '../../daemon/model/index.js'

/** A folder of our own for the time being; whoever asked for it removes it. */
export function makeTemporaryFolder(prefix: string): string {
  try {
    return mkdtempSync(join(tmpdir(), prefix))
  } catch (error) {
    throw localError(`make a folder in ${tmpdir()} (TMPDIR says where)`, error)
  }
}
