import { BobbinError } from '../daemon/model/index.js'
import { pointersTo, removePointers } from '../daemon/registry/pointers.js'
import { formatRegistry } from '../daemon/registry/reference.js'
import { resolveRevision } from '../daemon/registry/registry.js'
import { createRegistryWriter } from '../daemon/writer/index.js'
import { type PackageFlags, referenceOf, sourceConfigOf, withContext } from './context.js'

/** A revision (with a hash) or a whole name goes from its registry: its pointers, never a manifest or an object. */
export async function deletePackage(text: string, flags: PackageFlags & { readonly yes?: boolean }): Promise<void> {
  await withContext(flags, async ({ settings, source, output, signal }) => {
    const reference = referenceOf(text, flags, settings)
    const { registry, name, revision } = reference
    if (revision.kind === 'tag') {
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `name the revision by its top hash (bobbin log shows it), not by :${revision.tag}`,
      )
    }
    const writer = createRegistryWriter(registry, { ...sourceConfigOf(settings), cacheDir: settings.cacheDir })
    try {
      const of = { source, writer, registry, name }
      const topHash = revision.kind === 'hash' ? await resolveRevision(source, reference, { signal }) : undefined
      const pointers = await pointersTo(of, topHash, { signal })
      if (flags.yes) await removePointers(of, pointers, { signal })
      for (const { pointer, topHash } of pointers) {
        await output.row({ pointer, topHash, deleted: flags.yes ?? false }, `${topHash}  ${pointer}`)
      }
      const what = `${topHash === undefined ? 'all revisions' : topHash.slice(0, 12)} of ${name} in ${formatRegistry(registry)}`
      if (!flags.yes) {
        await output.flush()
        throw new BobbinError('INVALID_ARGUMENT', `nothing was deleted: pass --yes to delete ${what}, as listed`)
      }
      output.note(`bobbin: deleted ${what}; manifests and objects stay`)
    } finally {
      await writer.close()
    }
  })
}
