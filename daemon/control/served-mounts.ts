/**
 * What the daemon leases to callers who are not its owner: the packages that it has mounted, which these callers may see
 * anyway, and the registries that its owner named (`--allow`).
 */
import { parseRegistry } from '../registry/reference.js'
import { Served } from '../registry/served.js'
import type { MountFacts } from './schema.js'

export class ServedMounts {
  #made: { readonly mounts: string; readonly served: Served } | undefined

  constructor(
    private readonly mounts: () => readonly Pick<MountFacts, 'registry' | 'package' | 'topHash'>[],
    private readonly allowed: readonly string[],
  ) {}

  /** As it is now: made again when the mounts are others. */
  get now(): Served {
    const revisions = this.mounts().map(({ registry, package: name, topHash }) => ({
      registry,
      package: name,
      topHash,
    }))
    const mounts = JSON.stringify(revisions)
    if (this.#made?.mounts !== mounts)
      this.#made = { mounts, served: Served.named(revisions, this.allowed.map(parseRegistry)) }
    return this.#made.served
  }
}
