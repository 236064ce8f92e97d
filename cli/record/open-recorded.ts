/** Opens a package that a record names. */
import { parsePackageName } from '../../daemon/model/index.js'
import { type OpenedPackage, type OpenOptions, openPackage } from '../../daemon/package/package-cache.js'
import { parseRegistry } from '../../daemon/registry/reference.js'
import type { PackageAddress } from '../../loader/supply/daemon-leases.js'

/** Throws what `openPackage` throws. */
export function openRecorded(
  { registry, package: name, topHash }: PackageAddress,
  options: OpenOptions,
): Promise<OpenedPackage> {
  const revision = { kind: 'hash', prefix: topHash } as const
  return openPackage({ registry: parseRegistry(registry), name: parsePackageName(name), revision }, options)
}
