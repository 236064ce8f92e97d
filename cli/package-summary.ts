import type { OpenedPackage } from '../daemon/package/package-cache.js'
import { formatRegistry } from '../daemon/registry/reference.js'

/** What `resolve` tells of a revision; the metadata is JSON text. */
export function packageSummary(opened: OpenedPackage) {
  const { index } = opened
  return {
    registry: formatRegistry(opened.registry),
    package: opened.name,
    topHash: opened.topHash,
    entries: index.facts.entries,
    bytes: index.facts.bytes,
    message: index.message ?? null,
    timestamp: opened.timestampMs > 0 ? new Date(opened.timestampMs).toISOString() : null,
    quarantined: index.facts.quarantined,
  }
}
