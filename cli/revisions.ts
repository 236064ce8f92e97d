/** What the verbs share that make a revision: their flags, the name that they write to, and what they print. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { MetaChoice } from '../daemon/folder/push/meta-choice.js'
import type { Pushed } from '../daemon/folder/push/push-folder.js'
import type { Revision } from '../daemon/folder/push/push-revision.js'
import { parseUserMeta } from '../daemon/manifest/manifest-writer.js'
import { BobbinError, formatBytes, localError } from '../daemon/model/index.js'
import { formatRegistry, type PackageReference, parseReference } from '../daemon/registry/reference.js'
import { defaultRegistryOf } from './context.js'
import { jsonWith } from './json.js'
import type { Output } from './output.js'
import type { CommonFlags, Settings } from './settings.js'

/** Flags of the verbs that make a revision. */
export interface RevisionFlags extends CommonFlags {
  readonly registry?: string
  /** Without it the revision has none, as with quilt3. */
  readonly message?: string
  readonly meta?: string
  readonly workflow?: string
  readonly parent?: string
  readonly force?: boolean
}

/** Flags that give metadata to entries and folders. */
export interface MetaFlags {
  readonly metaFrom?: readonly string[]
  readonly metaUnder?: string
  readonly dirMeta?: readonly string[]
  readonly allowUnmatched?: boolean
}

export function summaryOf({ entries, bytes, uploaded, reused, isNew }: Pushed, place: string): string {
  if (!isNew) return `this is the latest revision already, ${place}`
  return `${entries} entries, ${formatBytes(bytes)}: ${uploaded} written, ${reused} there already; written to ${place}`
}

export function metaChoiceOf({ metaFrom, metaUnder, dirMeta, allowUnmatched }: MetaFlags): MetaChoice {
  if (metaUnder !== undefined && metaFrom === undefined) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      '--meta-under says where the keys of --meta-from are: pass --meta-from, too',
    )
  }
  return {
    entryMetas: { files: metaFrom ?? [], under: metaUnder, allowsUnmatched: allowUnmatched },
    directories: new Map((dirMeta ?? []).map(text => keyedMeta(text, '--dir-meta FOLDER=JSON'))),
  }
}

/** `KEY=JSON` or `KEY=@FILE`, without a slash at the key's end. */
export function keyedMeta(text: string, form: string): readonly [key: string, metadata: string] {
  const [, key = '', value] = /^(.+?)=([@{].*)$/s.exec(text) ?? []
  if (value === undefined) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `write it as ${form}, with a JSON object or @FILE: ${JSON.stringify(text)}`,
    )
  }
  return [key.replace(/\/+$/, ''), metaText(value)]
}

/** `JSON` or `@FILE`. */
function metaText(text: string): string {
  return parseUserMeta(text.startsWith('@') ? readMeta(text.slice(1)) : text)
}

/** The name that a revision is pushed to. Throws INVALID_ARGUMENT for a name that no new package may have. */
export function targetOf(text: string, flags: { readonly registry?: string }, settings: Settings): PackageReference {
  // Of all flags: --top-hash, where a verb has it, is of the package that is read.
  const { registry } = flags
  const reference = parseReference(text, { registry, defaultRegistry: () => defaultRegistryOf(settings, true) })
  if (reference.revision.kind !== 'latest') {
    throw new BobbinError('INVALID_ARGUMENT', `a push becomes the latest revision: leave @ and : out of ${text}`)
  }
  // Python's `$` lets it through, and nobody can type it again.
  if (reference.name.endsWith('\n')) throw new BobbinError('INVALID_ARGUMENT', 'the package name ends with a newline')
  return reference
}

/** In words. Asked before the push, which makes a registry of a folder that is none: a namespace may be forgotten. */
export function placeOf({ registry, name }: PackageReference): string {
  const isNew = registry.kind === 'file' && !existsSync(join(registry.path, '.quilt'))
  return `${name} in ${formatRegistry(registry)}${isNew ? ' (a new registry)' : ''}`
}

export function revisionOf({ message, meta, workflow, parent, force }: RevisionFlags) {
  return {
    message: message ?? null,
    userMeta: meta === undefined ? undefined : metaText(meta),
    workflow: workflowOf(workflow),
    parent,
    force,
  }
}

/** As with quilt3, nothing between the quotes is a wish for none. */
export function workflowOf(text: string | undefined): string | null | undefined {
  return text === '' ? null : text
}

function readMeta(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw localError(`read the metadata in ${path}`, error)
  }
}

/** As `resolve` prints it. */
export async function printRevision(
  { registry, name, topHash, entries, bytes, message, metadata }: Revision,
  output: Output,
): Promise<void> {
  const facts = { registry: formatRegistry(registry), package: name, topHash, entries, bytes, message }
  await output.row(jsonWith(facts, { metadata }), topHash)
}
