import { BobbinError } from '../daemon/model/index.js'
import { rollBack } from '../daemon/registry/pointers.js'
import { createRegistryWriter } from '../daemon/writer/index.js'
import { type PackageFlags, sourceConfigOf, withPackage } from './context.js'
import { jsonWith } from './json.js'
import { packageSummary } from './package-summary.js'

/** An earlier revision is the latest again. Its manifest is fetched and checked before, so that `latest` names nothing that is broken. */
export async function rollback(
  text: string,
  hash: string,
  flags: PackageFlags & { readonly force?: boolean },
): Promise<void> {
  if (/[@:](?!\/\/)[^/]*$/.test(text)) {
    throw new BobbinError('INVALID_ARGUMENT', `name the revision as the second argument: leave @ and : out of ${text}`)
  }
  await withPackage(text, { ...flags, topHash: hash }, async (opened, { settings, source, output, signal }) => {
    const { registry, name, topHash, index } = opened
    const config = { ...sourceConfigOf(settings), cacheDir: settings.cacheDir }
    const writer = createRegistryWriter(registry, config)
    try {
      const isNew = await rollBack({ source, writer, registry, name }, topHash, {
        signal,
        isForced: flags.force ?? false,
      })
      const what = `${name}@${topHash.slice(0, 12)}`
      output.note(
        isNew ? `bobbin: the latest revision is ${what} again` : `bobbin: ${what} is the latest revision already`,
      )
    } finally {
      await writer.close()
    }
    await output.row(jsonWith(packageSummary(opened), { metadata: index.packageMetadata() }), topHash)
  })
}
