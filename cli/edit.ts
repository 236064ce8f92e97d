/**
 * `edit` and `meta set`: another revision of a package from what changes in it alone. The revision that was read is the
 * parent of the new one, so that nobody else's is pushed over.
 */
import { resolve } from 'node:path'
import { type EditOptions, pushEdited } from '../daemon/folder/push/push-edited.js'
import type { PushProgress } from '../daemon/folder/push/transfers.js'
import { BobbinError } from '../daemon/model/index.js'
import type { OpenedPackage } from '../daemon/package/package-cache.js'
import { formatReference, formatRegistry, type PackageReference } from '../daemon/registry/reference.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { noSuchKey } from './entry-rows.js'
import { compilePaths } from './path-globs.js'
import {
  keyedMeta,
  type MetaFlags,
  metaChoiceOf,
  placeOf,
  printRevision,
  type RevisionFlags,
  revisionOf,
  summaryOf,
  targetOf,
} from './revisions.js'

/** `push`: a package; true, and for `meta set` nothing: the one that is read. */
interface EditFlags extends PackageFlags, RevisionFlags, MetaFlags {
  readonly push?: string | true
}

type Changes = Pick<EditOptions, 'added' | 'isRemoved' | 'entryMetas' | 'directories'>

export async function edit(
  text: string,
  flags: EditFlags & { readonly add?: readonly string[]; readonly remove?: readonly string[] },
): Promise<void> {
  const added = new Map((flags.add ?? []).map(addedFile))
  const metas = metaChoiceOf(flags)
  const isEmpty =
    added.size + (flags.remove ?? []).length + (flags.metaFrom ?? []).length + (flags.dirMeta ?? []).length === 0
  if (isEmpty && flags.meta === undefined) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      'nothing to change: give --add, --remove, --meta, --meta-from or --dir-meta',
    )
  }
  await change(text, flags, opened => ({ ...metas, added, isRemoved: removal(opened, flags.remove ?? []) }))
}

/** `bobbin meta set`: each of `values` is KEY=JSON, of an entry or of a folder. */
export async function setMeta(text: string, values: readonly string[], flags: EditFlags): Promise<void> {
  const given = values.map(value => keyedMeta(value, 'KEY=JSON'))
  const { entryMetas, directories } = metaChoiceOf(flags)
  const isEmpty = given.length + (flags.metaFrom ?? []).length + (flags.dirMeta ?? []).length === 0
  if (isEmpty && flags.meta === undefined) {
    throw new BobbinError('INVALID_ARGUMENT', 'nothing to set: give KEY=JSON, --meta, --meta-from or --dir-meta')
  }
  await change(text, flags, opened => {
    const entries = new Map<string, string>()
    const folders = new Map(directories)
    for (const [key, metadata] of given) {
      const node = opened.index.find(key)
      if (node === undefined) throw noSuchKey(opened, key)
      const kind = node.kind === 'file' ? entries : folders
      kind.set(key, metadata)
    }
    const metas = { ...entryMetas, files: entryMetas?.files ?? [], given: entries }
    return { entryMetas: metas, directories: folders, added: new Map(), isRemoved: () => false }
  })
}

async function change(text: string, flags: EditFlags, changesOf: (opened: OpenedPackage) => Changes): Promise<void> {
  await withPackage(text, flags, async (from, { settings, output, progress, signal }, reference) => {
    const target = typeof flags.push === 'string' ? targetOf(flags.push, flags, settings) : latestOf(reference)
    const place = placeOf(target)
    const pushed = await pushEdited({
      ...target,
      ...revisionOf(flags),
      ...changesOf(from),
      ...(isSamePackage(reference, target) && { parent: flags.parent ?? from.topHash }),
      from,
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      onLack: (what: string) => output.note(`bobbin: ${what}`),
      signal,
      onProgress: ({ bytes, bytesTotal }: PushProgress) => progress.update('push', bytes, bytesTotal),
    })
    progress.stop()
    output.note(`bobbin: ${summaryOf(pushed, place)}`)
    await printRevision(pushed, output)
  })
}

function latestOf({ registry, name }: PackageReference): PackageReference {
  return { registry, name, revision: { kind: 'latest' } }
}

function isSamePackage(a: PackageReference, b: PackageReference): boolean {
  return a.name === b.name && formatRegistry(a.registry) === formatRegistry(b.registry)
}

/** `KEY=FILE`, where `==` is a `=` of the key. */
function addedFile(text: string): readonly [key: string, path: string] {
  const [, key, path] = /^((?:[^=]|==)+)=([^=].*)$/s.exec(text) ?? []
  if (key === undefined || path === undefined) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `write it as --add KEY=FILE, with == for each = of the key: ${JSON.stringify(text)}`,
    )
  }
  return [key.replaceAll('==', '='), resolve(path)]
}

/** Throws ENTRY_NOT_FOUND for a pattern that fits nothing: it was meant to. */
function removal(opened: OpenedPackage, patterns: readonly string[]): (key: string) => boolean {
  const { index } = opened
  const matcherOf = (globs: readonly string[]) => compilePaths(globs, path => index.find(path) !== undefined)
  for (const pattern of patterns) {
    const isMatch = matcherOf([pattern])
    let isThere = false
    for (const { node, key } of index.walk()) {
      isThere = node.kind === 'file' && isMatch(key)
      if (isThere) break
    }
    if (isThere) continue
    const { registry, name, topHash } = opened
    const shown = formatReference({ registry, name, revision: { kind: 'hash', prefix: topHash.slice(0, 12) } })
    throw new BobbinError(
      'ENTRY_NOT_FOUND',
      `no entry of ${shown} matches --remove ${pattern} (bobbin ls -R lists them all)`,
    )
  }
  return patterns.length === 0 ? () => false : matcherOf(patterns)
}
