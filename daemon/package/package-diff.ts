/**
 * What differs between two revisions. Their indexes have the entries in tree order, and their manifests the whole metadata, so
 * nothing is kept but what differs. Two entries are equal where they are equal to quilt3: size, hash, and all of `meta`,
 * not only what the user gave.
 */
import { randomBytes } from 'node:crypto'
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { KeySorter } from '../index/key-sorter.js'

import type { PackageIndex } from '../index/package-index.js'
import { isPythonEqual } from '../json/python-equal.js'
import { parseExactJson } from '../json/python-json.js'
import { ManifestRows } from '../manifest/manifest-rows.js'
import { compareTreeOrder, type Entry, type ObjectHash } from '../model/index.js'
import type { OpenedPackage } from './package-cache.js'

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

/** In tree order. Throws INDEX_DAMAGED. */
export async function* diffPackages(
  before: OpenedPackage,
  after: OpenedPackage,
  signal?: AbortSignal,
): AsyncGenerator<Change> {
  const opened: ManifestRows[] = []
  try {
    for (const { manifestPath, index } of [before, after])
      opened.push(await ManifestRows.open(manifestPath, index.facts.manifestSha256, signal))
    const [oldRows, newRows] = opened as [ManifestRows, ManifestRows]
    const isSameMeta = (old: Row, now: Row) =>
      isSameJson(oldRows.meta(before.index.row(old.ino)), newRows.meta(after.index.row(now.ino)))
    yield* changes(rows(before.index), rows(after.index), isSameMeta)
  } finally {
    for (const one of opened) one.close()
  }
}

function* changes(
  olds: Generator<Row, undefined>,
  news: Generator<Row, undefined>,
  isSameMeta: (old: Row, now: Row) => boolean,
): Generator<Change> {
  let [old, now] = [olds.next().value, news.next().value]
  while (old || now) {
    const order = !old ? 1 : !now ? -1 : compareTreeOrder(old.key, now.key)
    if (order < 0) yield { change: 'removed', entry: old!.entry }
    else if (order > 0) yield { change: 'added', entry: now!.entry }
    else if (!isSameObject(old!.entry, now!.entry)) yield { change: 'changed', entry: now!.entry }
    else if (!isSameMeta(old!, now!)) yield { change: 'metadata', entry: now!.entry }
    if (order <= 0) old = olds.next().value
    if (order >= 0) now = news.next().value
  }
}

/** Whether the metadata of the packages themselves is the same. */
export function isSamePackageMetadata(before: PackageIndex, after: PackageIndex): boolean {
  return isSameJson(Buffer.from(before.packageMetadata()), Buffer.from(after.packageMetadata()))
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

function isSameJson(a: Buffer, b: Buffer): boolean {
  return a.equals(b) || isPythonEqual(parseExactJson(a.toString()), parseExactJson(b.toString()))
}

function nameOf({ type, hex }: ObjectHash): string {
  return `${type}:${hex}`
}

/**
 * The objects of changes, each once: what has to be fetched by who has the objects of another revision. Any number of them, in
 * bounded memory: they are sorted in scratch files. Whoever made it closes it.
 */
export class ObjectsToFetch {
  readonly #paths: readonly string[]
  readonly #wanted: KeySorter

  /** `folder` is for scratch files; it is made where it is missing. */
  constructor(folder: string) {
    mkdirSync(folder, { recursive: true, mode: 0o750 })
    const name = `${process.pid}-${randomBytes(6).toString('hex')}`
    this.#paths = ['wanted', 'present'].map(part => join(folder, `${name}.${part}`))
    this.#wanted = new KeySorter(this.#paths[0]!)
  }

  add(entry: Entry): void {
    addObject(this.#wanted, entry)
  }

  /** Bytes that no entry of this revision has. */
  bytesBeside(before: PackageIndex): number {
    const present = new KeySorter(this.#paths[1]!)
    try {
      for (const entry of before.entries()) addObject(present, entry)
      const others = present.sorted()
      let other = others.next()
      let last: Buffer | undefined
      let bytes = 0
      for (const { key, offset: size } of this.#wanted.sorted()) {
        if (last?.equals(key)) continue
        last = Buffer.from(key)
        while (!other.done && compareTreeOrder(other.value.key, key) < 0) other = others.next()
        if (other.done || !other.value.key.equals(key)) bytes += size
      }
      return bytes
    } finally {
      present.close()
    }
  }

  close(): void {
    this.#wanted.close()
    for (const path of this.#paths) rmSync(path, { force: true })
  }
}

/** The sorter's place for an offset has the size: it is as large as one can be. */
function addObject(sorter: KeySorter, { hash, size }: Entry): void {
  const key = Buffer.from(nameOf(hash))
  sorter.add(key, key.length, 0, size, 0)
}
