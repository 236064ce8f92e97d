/**
 * What may be had at one door (a socket of the loader or of the daemon): everything, for the owner; for others the
 * revisions and the registries that the operator named, and nothing else.
 *
 * A manifest is a stranger's text, and its physical keys say what a server reads with its own rights. So a door has
 * two rules. `admits`: is this revision named. `placesOf`: where may the bytes of its entries be read from. The first
 * one is asked before anything is looked up, so that nobody learns what lies in a registry that was not named.
 *
 * A registry is known by its address as text. Folders are known by where they really are, too: that is looked up once,
 * when the door is made, so that nobody can exchange a named folder for a link afterwards.
 */
import { realpathSync } from 'node:fs'
import { resolve } from 'node:path'
import type { PhysicalKey, Registry, Source } from '../model/index.js'
import { formatRegistry, parseRegistry } from './reference.js'

/** One revision of a package, as it is spelt on its way between processes. */
export interface RevisionAddress {
  /** As `formatRegistry` writes it. */
  readonly registry: string
  readonly package: string
  /** In full. */
  readonly topHash: string
}

/** Where the bytes of a revision may be read from. */
export interface Places {
  /** Absolute paths: a file has to lie below one of them, also behind all links. */
  readonly folders: readonly string[]
  readonly buckets: readonly string[] | 'any'
}

export class Served {
  /** For the owner of the process, who may read all of it anyway. */
  static readonly everything = new Served(undefined)
  static readonly nothing = Served.named([], [])

  /** The revisions by hash, and whatever the registries hold. Throws INVALID_ARGUMENT for an address that is none. */
  static named(revisions: Iterable<RevisionAddress>, registries: Iterable<Registry>): Served {
    const pinned = new Map<string, RevisionAddress>()
    const askable = new Set<string>()
    for (const revision of revisions) {
      pinned.set(keyOf(revision), revision)
      askable.add(nameOf(revision))
    }
    const open = new Map<string, Registry>()
    for (const registry of registries) open.set(formatRegistry(registry), registry)
    const folders = new Map<string, readonly string[]>()
    for (const { registry } of pinned.values()) folders.set(registry, foldersOf(parseRegistry(registry)))
    for (const [text, registry] of open) folders.set(text, foldersOf(registry))
    return new Served({ pinned, askable, open, folders })
  }

  private constructor(
    private readonly rules:
      | {
          /** By `keyOf`. */
          readonly pinned: ReadonlyMap<string, RevisionAddress>
          /** By `nameOf`: registry and package of those. */
          readonly askable: ReadonlySet<string>
          /** By address. */
          readonly open: ReadonlyMap<string, Registry>
          /** By the address of each of these registries. */
          readonly folders: ReadonlyMap<string, readonly string[]>
        }
      | undefined,
  ) {}

  get isEverything(): boolean {
    return this.rules === undefined
  }

  /** The revisions that were named by their hash. */
  get revisions(): readonly RevisionAddress[] {
    return [...(this.rules?.pinned.values() ?? [])]
  }

  /** The registries that were named as a whole. */
  get registries(): readonly string[] {
    return [...(this.rules?.open.keys() ?? [])]
  }

  /** May the registry be asked what this package is now? Before the revision is known. */
  mayAsk(address: Pick<RevisionAddress, 'registry' | 'package'>): boolean {
    const { rules } = this
    return rules === undefined || rules.open.has(address.registry) || rules.askable.has(nameOf(address))
  }

  admits(address: RevisionAddress): boolean {
    const { rules } = this
    return rules === undefined || rules.open.has(address.registry) || rules.pinned.has(keyOf(address))
  }

  /**
   * Where the bytes of a revision that is admitted may be read from; `undefined`: anywhere.
   *
   * A folder's package has its own folder and those that are named. An S3 key may lie in any bucket when its revision was
   * named by its hash: only bytes that have the hashes which the operator chose come out, and failures are not told. In a
   * registry that was named as a whole, whoever may write there chooses the hashes and could try guesses at what lies
   * in a foreign bucket, so there only named buckets count.
   */
  placesOf(address: RevisionAddress): Places | undefined {
    const { rules } = this
    if (rules === undefined) return undefined
    const folders = new Set(rules.folders.get(address.registry))
    for (const text of rules.open.keys()) for (const folder of rules.folders.get(text) ?? []) folders.add(folder)
    const buckets = [...rules.open.values()].flatMap(registry => (registry.kind === 's3' ? registry.bucket : []))
    return { folders: [...folders], buckets: rules.pinned.has(keyOf(address)) ? 'any' : buckets }
  }
}

/** As far as its text says: a link on the way is noticed when the file is opened (daemon/source/file.ts). */
export function isWithin(key: PhysicalKey, { folders, buckets }: Places): boolean {
  switch (key.kind) {
    case 's3':
      return buckets === 'any' || buckets.includes(key.bucket)
    case 'file':
      return isBelowOne(resolve(key.path), folders)
    default:
      return key satisfies never
  }
}

/** `path`: without `.` and `..`. */
export function isBelowOne(path: string, folders: readonly string[]): boolean {
  return folders.some(folder => path.startsWith(folder === '/' ? '/' : `${folder}/`))
}

/** The source, but for files that lie elsewhere than in these folders. */
export function confined(source: Source, within: readonly string[] | undefined): Source {
  if (within === undefined) return source
  return {
    read: (key, options) => source.read(key, { ...options, within }),
    list: (folder, options) => source.list(folder, options),
  }
}

/** As it was named, and where that is. */
function foldersOf(registry: Registry): readonly string[] {
  if (registry.kind !== 'file') return []
  const named = resolve(registry.path)
  try {
    return [...new Set([named, realpathSync(named)])]
  } catch {
    // Not there yet, or not for us: what comes later is taken by its name alone.
    return [named]
  }
}

function nameOf({ registry, package: name }: Pick<RevisionAddress, 'registry' | 'package'>): string {
  return `${registry}\0${name}`
}

function keyOf(address: RevisionAddress): string {
  return `${nameOf(address)}\0${address.topHash}`
}
