/** Opens a package that a record names. */
import { parsePackageName } from '../../daemon/model/index.js'
import { type OpenedPackage, type OpenOptions, openPackage } from '../../daemon/quilt/package-cache.js'
import { parseRegistry } from '../../daemon/quilt/reference.js'
import type { PackageAddress } from '../../loader/http/objects.js'

/** Throws what `openPackage` throws. */
export function openRecorded(
  { registry, package: name, topHash }: PackageAddress,
  options: OpenOptions,
): Promise<OpenedPackage> {
  const revision = { kind: 'hash', prefix: topHash } as const
  return openPackage({ registry: parseRegistry(registry), name: parsePackageName(name), revision }, options)
}
