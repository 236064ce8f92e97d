/** What differs between two revisions, from their indexes: both are in tree order, so nothing is kept but what differs. */

import { canonicalJson } from '../json/canonical-json.js'
import { compareTreeOrder, type Entry, type ObjectHash } from '../model/index.js'
import { type PackageIndex, ROOT_INO } from './package-index.js'

export interface Change {
  /** `changed`: other bytes, or bytes known by a hash of another type. `metadata`: the same bytes, other metadata. */
  readonly change: 'added' | 'removed' | 'changed' | 'metadata'
  /** As it is after the change; of a removed one, as it was. */
  readonly entry: Entry
}

interface Row {
  readonly entry: Entry
  readonly key: Buffer
  readonly ino: number
}

/** In tree order. */
export function* diffPackages(before: PackageIndex, after: PackageIndex): Generator<Change> {
  const [olds, news] = [rows(before), rows(after)]
  let [old, now] = [olds.next().value, news.next().value]
  while (old || now) {
    const order = !old ? 1 : !now ? -1 : compareTreeOrder(old.key, now.key)
    if (order < 0) yield { change: 'removed', entry: old!.entry }
    else if (order > 0) yield { change: 'added', entry: now!.entry }
    else if (!isSameObject(old!.entry, now!.entry)) yield { change: 'changed', entry: now!.entry }
    else if (!isSameMetadata(before, old!.ino, after, now!.ino)) yield { change: 'metadata', entry: now!.entry }
    if (order <= 0) old = olds.next().value
    if (order >= 0) now = news.next().value
  }
}

/** Whether the metadata of the packages themselves is the same. */
export function isSamePackageMetadata(before: PackageIndex, after: PackageIndex): boolean {
  return isSameMetadata(before, ROOT_INO, after, ROOT_INO)
}

function* rows(index: PackageIndex): Generator<Row, undefined> {
  for (const { node, key } of index.walk()) {
    if (node.kind === 'file') yield { entry: index.entry(node.ino, key), key: Buffer.from(key), ino: node.ino }
  }
  return undefined
}

function isSameObject(a: Entry, b: Entry): boolean {
  return a.size === b.size && nameOf(a.hash) === nameOf(b.hash)
}

function isSameMetadata(before: PackageIndex, old: number, after: PackageIndex, now: number): boolean {
  const [a, b] = [before.metadata(old), after.metadata(now)]
  return a === b || (a !== undefined && b !== undefined && canonical(a) === canonical(b))
}

function canonical(json: string): string {
  const bytes = Buffer.from(json)
  return canonicalJson(bytes, 0, bytes.length)
}

function nameOf({ type, hex }: ObjectHash): string {
  return `${type}:${hex}`
}

/** The objects of changes, each once: what has to be fetched by who has the objects of another revision. */
export class ObjectsToFetch {
  readonly #sizes = new Map<string, number>()

  add({ hash, size }: Entry): void {
    this.#sizes.set(nameOf(hash), size)
  }

  /** Bytes that no entry of this revision has. */
  bytesBeside(before: PackageIndex): number {
    if (this.#sizes.size > 0) for (const { hash } of before.entries()) this.#sizes.delete(nameOf(hash))
    let bytes = 0
    for (const size of this.#sizes.values()) bytes += size
    return bytes
  }
}
