import { ROOT_INO } from '../daemon/index/package-index.js'
import { formatBytes } from '../daemon/model/index.js'
import { type PackageFlags, withPackage } from './context.js'
import { jsonWith } from './json.js'
import { packageSummary } from './package-summary.js'

export async function resolve(reference: string, flags: PackageFlags): Promise<void> {
  await withPackage(reference, flags, async (opened, { output }) => {
    const summary = packageSummary(opened)
    const metadata = opened.index.metadata(ROOT_INO)
    const lines = [
      summary.topHash,
      `  package   ${summary.package}`,
      `  registry  ${summary.registry}`,
      `  entries   ${summary.entries.toLocaleString('en')}, ${formatBytes(summary.bytes)}`,
      ...(summary.timestamp === null ? [] : [`  pushed    ${summary.timestamp}`]),
      ...(summary.message === null ? [] : [`  message   ${summary.message}`]),
      ...(metadata === undefined ? [] : [`  metadata  ${metadata}`]),
    ]
    // In a script `$(bobbin resolve …)` should give the hash and nothing else.
    await output.row(
      jsonWith(summary, { metadata: opened.index.packageMetadata() }),
      process.stdout.isTTY ? lines : summary.topHash,
    )
  })
}
