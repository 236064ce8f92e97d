import { BobbinError, type PackageName, type Registry, type TopHash } from '../daemon/model/index.js'
import { readAhead } from '../daemon/registry/read-ahead.js'
import { parseRegistry } from '../daemon/registry/reference.js'
import { listPackages, listRevisions } from '../daemon/registry/registry.js'
import { type Context, defaultRegistryOf, withContext } from './context.js'
import type { CommonFlags } from './settings.js'

/** How many packages are asked about at once. */
const LOOK_AHEAD = 16

interface PackageRow {
  readonly package: PackageName
  readonly revisions: number
  readonly latest: TopHash | null
}

/** Names as they come; with --json or -l their revisions too, which costs a request or two each. */
export async function packages(
  registryText: string | undefined,
  flags: CommonFlags & { readonly long?: boolean },
): Promise<void> {
  await withContext(flags, async context => {
    const text = registryText ?? defaultRegistryOf(context.settings)
    if (text === undefined) {
      throw new BobbinError(
        'INVALID_ARGUMENT',
        'no registry: name one (s3://BUCKET or a folder), or set BOBBIN_REGISTRY',
      )
    }
    const registry = parseRegistry(text)
    const names = listPackages(context.source, registry, { signal: context.signal })
    if (!flags.json && !flags.long) {
      for await (const name of names) await context.output.line(name)
      return
    }
    const described = readAhead(names, LOOK_AHEAD, context.signal, (name, signal) =>
      describe(context, registry, name, signal),
    )
    for await (const row of described)
      await context.output.row(row, `${row.package}  ${row.revisions} revisions  ${row.latest ?? '(no latest)'}`)
  })
}

async function describe(
  { source }: Context,
  registry: Registry,
  name: PackageName,
  signal: AbortSignal | undefined,
): Promise<PackageRow> {
  let revisions = 0
  let latest: TopHash | null = null
  let newest: TopHash | null = null
  for await (const revision of listRevisions(source, registry, name, { signal })) {
    if (revision.timestampMs !== undefined) {
      revisions++
      newest ??= revision.topHash
    } else if (revision.pointer === 'latest') latest = revision.topHash
  }
  return { package: name, revisions, latest: latest ?? newest }
}
