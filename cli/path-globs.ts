/** The entries that `--path` names, for every verb that takes it: a glob, or the key of an entry or of a directory, which means all below it. */
import type { PackageIndex } from '../daemon/index/package-index.js'
import { compileGlobs, quoteGlob } from '../daemon/model/globs.js'
import { BobbinError, type Entry } from '../daemon/model/index.js'
import type { PackageReference } from '../daemon/registry/reference.js'

/** What was typed; the path of a Quilt+ URI counts when `--path` is not given. */
export function patternsOf(
  flags: { readonly path?: readonly string[] },
  reference: PackageReference,
): readonly string[] {
  return flags.path ?? (reference.path === undefined ? [] : [reference.path])
}

/** Tells which paths are meant: those that match, and all below them. What is there under the very name is that name. Throws INVALID_ARGUMENT. */
export function compilePaths(
  patterns: readonly string[],
  isThere: (path: string) => boolean,
): (path: string) => boolean {
  const globs = patterns
    .map(pattern => pattern.replace(/\/+$/, ''))
    .map(pattern => (isThere(pattern) ? quoteGlob(pattern) : pattern))
  // `!glob` means all that does not match, which what lies below is part of anyway.
  const wanted = globs.filter(glob => !/^!(?!\()/.test(glob))
  return compileGlobs([...globs, ...wanted.map(glob => `${glob}/**`)])
}

export interface PathSelection {
  isSelected(key: string): boolean
  entries(): Iterable<Entry>
  readonly bytes: number
}

/** Without a pattern, all of the package. Throws ENTRY_NOT_FOUND when nothing fits. */
export function selectPaths(index: PackageIndex, patterns: readonly string[]): PathSelection {
  if (patterns.length === 0) return { isSelected: () => true, entries: () => index.entries(), bytes: index.facts.bytes }
  const isSelected = compilePaths(patterns, path => index.find(path) !== undefined)
  function* entries(): Generator<Entry> {
    for (const { node, key } of index.walk())
      if (node.kind === 'file' && isSelected(key)) yield index.entry(node.ino, key)
  }
  let files = 0
  let bytes = 0
  for (const { size } of entries()) {
    files++
    bytes += size
  }
  if (files === 0)
    throw new BobbinError('ENTRY_NOT_FOUND', `no entry matches ${patterns.join(', ')} (bobbin ls -R lists them all)`)
  return { isSelected, entries, bytes }
}
