/**
 * What this loader gives, and what it says of what it does not give. Its user has everything and is told everything, on
 * a socket that nobody else may open. Whoever else comes in gets what the operator named: revisions and registries
 * (daemon/registry/served.ts), and no word about anything that was found (daemon/control/conceal.ts).
 *
 * All packages are opened here, so that no route can forget to ask.
 */
import { Concealer } from '../../daemon/control/conceal.js'
import { problemOf } from '../../daemon/control/errors.js'
import { BobbinError, type Log, type TopHash } from '../../daemon/model/index.js'
import {
  type OpenedPackage,
  type OpenOptions,
  openPackage,
  resolveTopHash,
} from '../../daemon/package/package-cache.js'
import { formatReference, formatRegistry, type PackageReference } from '../../daemon/registry/reference.js'
import { confined, type Places, type RevisionAddress, type Served } from '../../daemon/registry/served.js'

export class Door {
  readonly #concealer: Concealer

  constructor(
    readonly served: Served,
    log: Log,
  ) {
    this.#concealer = new Concealer('the loader', log)
  }

  /** Does it give its user everything? */
  get isOwners(): boolean {
    return this.served.isEverything
  }

  admits(address: RevisionAddress): boolean {
    return this.served.admits(address)
  }

  /** Where the bytes of a revision may be read from, for the daemon; `undefined`: anywhere. Throws NOT_SERVED. */
  placesOf(address: RevisionAddress): Places | undefined {
    if (this.admits(address)) return this.served.placesOf(address)
    throw this.found(notServed(`${address.registry}/${address.package}@${address.topHash}`))
  }

  /** Whoever opened it closes it. Throws what opening a package throws, as far as it may be told. */
  async open(reference: PackageReference, options: OpenOptions): Promise<OpenedPackage> {
    if (this.isOwners) return openPackage(reference, options)
    try {
      return await this.#openServed(reference, options)
    } catch (error) {
      throw this.found(error)
    }
  }

  async #openServed(reference: PackageReference, options: OpenOptions): Promise<OpenedPackage> {
    const asked = { registry: formatRegistry(reference.registry), package: reference.name }
    // Before anything is looked up: what lies in a registry that was not named is no business of this caller's.
    if (!this.served.mayAsk(asked)) throw notServed(formatReference(reference))
    const places = this.served.placesOf({ ...asked, topHash: '' })
    const bounded = { ...options, source: confined(options.source, places?.folders) }
    const topHash: TopHash = await resolveTopHash(reference, bounded)
    if (!this.admits({ ...asked, topHash })) throw notServed(formatReference(reference))
    return openPackage({ ...reference, revision: { kind: 'hash', prefix: topHash } }, bounded)
  }

  /** Of something that was looked up for the caller: what they may know. */
  found(error: unknown): BobbinError {
    if (!this.isOwners) return this.#concealer.concealFound(error)
    return error instanceof BobbinError ? error : new BobbinError('INTERNAL', String(error), { cause: error })
  }

  /** Of any failure on its way out: what the caller may know. */
  shown(error: unknown): unknown {
    // What Fastify itself refuses is about the request.
    const isAboutRequest = !(error instanceof BobbinError) && problemOf(error).code !== 'INTERNAL'
    return this.isOwners || isAboutRequest ? error : this.#concealer.conceal(error)
  }
}

function notServed(what: string): BobbinError {
  return new BobbinError('ACCESS_DENIED', `${what} is not among what this loader serves (--serve, --allow)`)
}
