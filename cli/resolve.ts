import { formatBytes } from '../daemon/model/index.js'
import type { OpenedPackage } from '../daemon/quilt/package-cache.js'
import { ROOT_INO } from '../daemon/quilt/package-index.js'
import { formatRegistry } from '../daemon/quilt/reference.js'
import { type PackageFlags, withPackage } from './context.js'

/** The JSON document of `resolve`. */
export function packageSummary(opened: OpenedPackage) {
  const { index } = opened
  const metadata = index.metadata(ROOT_INO)
  return {
    registry: formatRegistry(opened.registry),
    package: opened.name,
    topHash: opened.topHash,
    entries: index.facts.entries,
    bytes: index.facts.bytes,
    message: index.message ?? null,
    timestamp: opened.timestampMs > 0 ? new Date(opened.timestampMs).toISOString() : null,
    metadata: metadata === undefined ? null : (JSON.parse(metadata) as unknown),
    quarantined: index.facts.quarantined,
  }
}

export async function resolve(reference: string, flags: PackageFlags): Promise<void> {
  await withPackage(reference, flags, async (opened, { output }) => {
    const summary = packageSummary(opened)
    const lines = [
      summary.topHash,
      `  package   ${summary.package}`,
      `  registry  ${summary.registry}`,
      `  entries   ${summary.entries.toLocaleString('en')}, ${formatBytes(summary.bytes)}`,
      ...(summary.timestamp === null ? [] : [`  pushed    ${summary.timestamp}`]),
      ...(summary.message === null ? [] : [`  message   ${summary.message}`]),
      ...(summary.metadata === null ? [] : [`  metadata  ${JSON.stringify(summary.metadata)}`]),
    ]
    // In a script `$(bobbin resolve …)` should give the hash and nothing else.
    await output.result(summary, process.stdout.isTTY ? lines.join('\n') : summary.topHash)
  })
}
