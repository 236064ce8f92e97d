import { BobbinError, type TopHash } from '../daemon/model/index.js'
import { type PointersOf, pointersTo, removePointers } from '../daemon/registry/pointers.js'
import { formatRegistry, type PackageReference } from '../daemon/registry/reference.js'
import { type Revision, resolveRevision } from '../daemon/registry/registry.js'
import { createRegistryWriter } from '../daemon/writer/index.js'
import { type Context, type PackageFlags, sourceConfigOf, withContext, withMeant } from './context.js'

/** What would go. */
interface Found {
  readonly reference: PackageReference
  /** Without it, the whole name. */
  readonly topHash: TopHash | undefined
  readonly pointers: readonly Revision[]
}

/** A revision (with a hash) or a whole name goes from its registry: its pointers, never a manifest or an object. */
export async function deletePackage(text: string, flags: PackageFlags & { readonly yes?: boolean }): Promise<void> {
  await withContext(flags, async context => {
    const { output, signal } = context
    const { reference, topHash, pointers } = await withMeant(text, flags, context, named => find(named, context))
    const { registry, name } = reference
    if (flags.yes) await withWriter(reference, context, of => removePointers(of, pointers, { signal }))
    for (const { pointer, topHash } of pointers) {
      await output.row({ pointer, topHash, deleted: flags.yes ?? false }, `${topHash}  ${pointer}`)
    }
    const what = `${topHash === undefined ? 'all revisions' : topHash.slice(0, 12)} of ${name} in ${formatRegistry(registry)}`
    if (!flags.yes) {
      await output.flush()
      throw new BobbinError('INVALID_ARGUMENT', `nothing was deleted: pass --yes to delete ${what}, as listed`)
    }
    output.note(`bobbin: deleted ${what}; manifests and objects stay`)
  })
}

async function find(reference: PackageReference, { source, signal }: Context): Promise<Found> {
  const { registry, name, revision } = reference
  if (revision.kind === 'tag') {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `name the revision by its top hash (bobbin log shows it), not by :${revision.tag}`,
    )
  }
  const topHash = revision.kind === 'hash' ? await resolveRevision(source, reference, { signal }) : undefined
  return { reference, topHash, pointers: await pointersTo({ source, registry, name }, topHash, { signal }) }
}

async function withWriter(
  { registry, name }: PackageReference,
  { settings, source }: Context,
  use: (of: PointersOf) => Promise<void>,
): Promise<void> {
  const writer = createRegistryWriter(registry, { ...sourceConfigOf(settings), cacheDir: settings.cacheDir })
  try {
    await use({ source, writer, registry, name })
  } finally {
    await writer.close()
  }
}
