/** What a run has written: every file of its output folder, by its hash. */
import { createHash } from 'node:crypto'
import { createReadStream, lstatSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { localError, systemCode } from '../../daemon/model/index.js'

export interface OutputFile {
  /** Below the output folder, with slashes. */
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** Hex. */
  readonly sha256: string
}

/** In the order of their paths. Links and what is no file are left out: they are not content. */
export async function hashOutputs(folder: string): Promise<OutputFile[]> {
  const found: OutputFile[] = []
  for (const path of filesBelow(folder, '')) {
    const hash = createHash('sha256')
    let size = 0
    for await (const chunk of createReadStream(join(folder, path))) {
      hash.update(chunk as Buffer)
      size += (chunk as Buffer).length
    }
    found.push({ path, size, sha256: hash.digest('hex') })
  }
  return found.sort((a, b) => (a.path < b.path ? -1 : 1))
}

function* filesBelow(folder: string, below: string): Generator<string> {
  try {
    for (const name of readdirSync(join(folder, below))) {
      const path = below === '' ? name : `${below}/${name}`
      const stats = lstatSync(join(folder, path))
      if (stats.isDirectory()) yield* filesBelow(folder, path)
      else if (stats.isFile()) yield path
    }
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw localError(`read the outputs in ${folder}`, error)
  }
}

export interface OutputDifference {
  readonly path: string
  readonly change: 'same' | 'changed' | 'missing' | 'added'
  readonly recorded?: string
  readonly found?: string
}

/** One row a path of either; the order is that of the paths. */
export function compareOutputs(recorded: readonly OutputFile[], found: readonly OutputFile[]): OutputDifference[] {
  const [before, now] = [recorded, found].map(list => new Map(list.map(({ path, sha256 }) => [path, sha256])))
  const paths = [...new Set([...before!.keys(), ...now!.keys()])].sort()
  return paths.map(path => {
    const [was, is] = [before!.get(path), now!.get(path)]
    if (was === undefined) return { path, change: 'added', found: is! }
    if (is === undefined) return { path, change: 'missing', recorded: was }
    return { path, change: was === is ? 'same' : 'changed', recorded: was, found: is }
  })
}
