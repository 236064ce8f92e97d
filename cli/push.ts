import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { pushFolder } from '../daemon/fetch/push/push-folder.js'
import type { Revision } from '../daemon/fetch/push/push-revision.js'
import { BobbinError, formatBytes, localError } from '../daemon/model/index.js'
import { parseUserMeta } from '../daemon/quilt/manifest-writer.js'
import { formatRegistry, type PackageReference } from '../daemon/quilt/reference.js'
import { referenceOf, sourceConfigOf, withContext } from './context.js'
import { jsonWith } from './json.js'
import type { Output } from './output.js'
import type { CommonFlags, Settings } from './settings.js'

/** Flags of the verbs that make a revision. */
export interface RevisionFlags extends CommonFlags {
  readonly registry?: string
  readonly message: string
  readonly meta?: string
  readonly workflow?: string
  readonly parent?: string
  readonly force?: boolean
}

/** So many are named to a person. */
const SKIPPED_SHOWN_MAX = 10

export async function push(dir: string, text: string, flags: RevisionFlags): Promise<void> {
  await withContext(flags, async ({ settings, output, progress, signal }) => {
    const reference = targetOf(text, flags, settings)
    const place = placeOf(reference)
    let skipped = 0
    const pushed = await pushFolder({
      ...reference,
      ...revisionOf(flags),
      dir: resolve(dir),
      sourceConfig: sourceConfigOf(settings),
      cacheDir: settings.cacheDir,
      onLack: what => output.note(`bobbin: ${what}`),
      signal,
      onProgress: ({ bytes, bytesTotal }) => progress.update('push', bytes, bytesTotal),
      onSkipped: (key, reason) => {
        if (++skipped <= SKIPPED_SHOWN_MAX) output.note(`bobbin: left out ${JSON.stringify(key)}: ${reason}`)
      },
    })
    progress.stop()
    if (skipped > SKIPPED_SHOWN_MAX) output.note(`bobbin: and ${skipped - SKIPPED_SHOWN_MAX} more`)
    const { entries, bytes, uploaded, reused, isNew } = pushed
    output.note(
      isNew
        ? `bobbin: ${entries} entries, ${formatBytes(bytes)}: ${uploaded} written, ${reused} there already; written to ${place}`
        : `bobbin: this is the latest revision already, ${place}`,
    )
    await printRevision(pushed, output)
  })
}

/** The name that a revision is pushed to. Throws INVALID_ARGUMENT for a name that no new package may have. */
export function targetOf(text: string, flags: { readonly registry?: string }, settings: Settings): PackageReference {
  // Of all flags: --top-hash, where a verb has it, is of the package that is read.
  const { registry } = flags
  const reference = referenceOf(text, { ...(registry !== undefined && { registry }) }, settings)
  if (reference.revision.kind !== 'latest') {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `what is pushed becomes the latest revision: leave @ and : out of ${text}`,
    )
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
    message,
    userMeta: meta === undefined ? undefined : parseUserMeta(meta.startsWith('@') ? readMeta(meta.slice(1)) : meta),
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
