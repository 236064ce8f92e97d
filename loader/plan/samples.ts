/** Entries that belong together (protocol.md, Samples). */

import { type PackageIndex, ROOT_INO } from '../../daemon/index/package-index.js'
import { BobbinError, type Entry } from '../../daemon/model/index.js'
import type { PlanDocument } from './plan-document.js'
import { Selector } from './selection.js'

/** Of a name without a dot, or with none but a first one. */
export const SUFFIX_DEFAULT = 'bin'
/** With the digits of a position and `.error.json` it fits into a tar header. */
const SUFFIX_BYTES_MAX = 80
/** A repeated sample has an empty member of this suffix. */
const PAD_SUFFIX = 'pad'

/** As webdataset splits names: at the first dot, which is not the name's first character. */
export function sampleNameOf(name: string): { readonly stem: string; readonly suffix: string } {
  const dotAt = name.indexOf('.', 1)
  if (dotAt < 0 || dotAt === name.length - 1) return { stem: name, suffix: SUFFIX_DEFAULT }
  return { stem: name.slice(0, dotAt), suffix: name.slice(dotAt + 1) }
}

export interface FoundSample {
  /** In the byte order of their suffixes. */
  readonly inos: readonly number[]
  /** Of all its files. */
  readonly bytes: number
}

/**
 * The samples of a package, in order, in constant memory: inode numbers go breadth first, so the files of a
 * directory follow each other in the order of their names, and those of one stem stand together.
 * Throws INVALID_ARGUMENT as the protocol says.
 */
export function* findSamples(index: PackageIndex, document: PlanDocument): Generator<FoundSample> {
  const selector = new Selector(document)
  const last = index.facts.entries + index.facts.directories
  let open: { directory: number; stem: string; files: { ino: number; suffix: string; size: number }[] } | undefined
  let directory = { ino: 0, prefix: '' }
  let isAny = false
  for (let ino = ROOT_INO; ino <= last; ino++) {
    const node = index.node(ino)
    if (node.kind === 'directory') continue
    if (node.parent !== directory.ino) {
      const key = index.key(node.parent)
      directory = { ino: node.parent, prefix: key === '' ? '' : `${key}/` }
    }
    const entry = index.entry(ino, directory.prefix + node.name)
    if (!selector.matches({ ...entry, meta: () => index.metadata(ino) })) continue
    isAny = true
    const { stem, suffix } = sampleNameOf(node.name)
    checkSuffix(entry, suffix, document)
    const isWithout = stem === node.name
    const isSame = document.group.by === 'stem' && !isWithout && open?.directory === node.parent && open.stem === stem
    if (!isSame) {
      if (open !== undefined) yield sampleOf(open.files)
      // One without a suffix stands alone, also before `x.jpg`.
      open = { directory: isWithout ? 0 : node.parent, stem, files: [] }
    }
    open!.files.push({ ino, suffix, size: entry.size })
  }
  if (open !== undefined) yield sampleOf(open.files)
  if (isAny) return
  const why = selector.firstError === undefined ? '' : `; "where" does not fit: ${selector.firstError}`
  const { select, exclude, where } = document
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `the plan selects no entry of the package, with ${JSON.stringify({ select, exclude, where })}${why}`,
  )
}

function sampleOf(files: { ino: number; suffix: string; size: number }[]): FoundSample {
  files.sort((a, b) => Buffer.compare(Buffer.from(a.suffix), Buffer.from(b.suffix)))
  return { inos: files.map(({ ino }) => ino), bytes: files.reduce((sum, { size }) => sum + size, 0) }
}

function checkSuffix({ key }: Entry, suffix: string, { meta }: PlanDocument): void {
  const refuse = (why: string) => new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(key)}: ${why}`)
  if (Buffer.byteLength(suffix) > SUFFIX_BYTES_MAX)
    throw refuse(`its suffix has more than ${SUFFIX_BYTES_MAX} bytes; leave it out with "exclude"`)
  if (suffix === meta)
    throw refuse(
      `its suffix is in the way of the metadata member; give that another one ("meta": "meta.json", in Python meta="meta.json") or none ("meta": null, in Python meta=None)`,
    )
  if (suffix === PAD_SUFFIX || suffix.endsWith('.error.json'))
    throw refuse(`its suffix is used by the protocol itself; leave it out with "exclude"`)
}
