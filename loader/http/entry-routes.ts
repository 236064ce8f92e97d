/** Entries by key or by hash: one as it is, or a list of them, or of parts of them, as tar. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { bodyBytesOf } from '../../daemon/control/bodies.js'
import { BobbinError, type ObjectHash, parseTopHash } from '../../daemon/model/index.js'
import type { OpenedPackage } from '../../daemon/package/package-cache.js'
import { formatRegistry, parseReference } from '../../daemon/registry/reference.js'
import { type ObjectId, objectId, objectPath } from '../../daemon/store/index.js'
import type { PackedObject } from '../batch/packing.js'
import { Layout } from '../format/layout.js'
import { hashText, type ListedEntry, listLayout, markMissing } from '../format/shard.js'
import type { Lease, PackageAddress } from '../supply/daemon-leases.js'
import { type AnswerHead, type AnswerObjects, negotiate, sendLayout } from './answer.js'
import { type Context, sizeOfList, stream } from './context.js'
import { EntryParams, ListBody, ObjectParams } from './schema.js'
import { withKey } from './shards.js'

interface EntryPlace {
  readonly address: PackageAddress
  readonly ino: number
  readonly key: string
}

/** What somebody asked for, and what came of it. */
interface Wished {
  readonly key: string | null
  readonly hash: ObjectHash
  /** Bytes. */
  readonly size: number
  readonly path: string
  /** undefined: leased by its hash. */
  readonly place?: EntryPlace
  error?: BobbinError
}

const ONE = { listed: 1 }

export function entryRoutes(app: FastifyInstance, context: Context): void {
  const { streams } = context
  app.get<{ Params: { topHash: string; '*': string } }>(
    '/v1/p/:topHash/*',
    { schema: { params: EntryParams, summary: 'An entry by its key, of a package that a plan was made of' } },
    async (request, reply) =>
      streams.during(ONE, async () => {
        const { topHash, '*': key } = request.params
        const address = knownAddress(context, topHash)
        if (address === undefined)
          throw new BobbinError('REVISION_NOT_FOUND', `this sidecar has no plan of the package ${topHash}`)
        await context.packages.use(address, async opened => {
          await sendOne(context, request, reply, byKey(context, address, opened, key))
        })
      }),
  )

  app.get<{ Params: { hash: string } }>(
    '/v1/o/:hash',
    { schema: { params: ObjectParams, summary: 'An object of the store, by its SHA-256 value' } },
    async (request, reply) =>
      streams.during(ONE, async () => {
        const { found, release } = await findByHash(context, [request.params.hash])
        try {
          await sendOne(context, request, reply, present(context, found[0], request.params.hash))
        } finally {
          release()
        }
      }),
  )

  app.post<{ Body: ListBody }>(
    '/v1/get',
    { schema: { body: ListBody, summary: 'Entries, or parts of them, as tar in the order asked for' } },
    async (request, reply) => {
      const size = sizeOfList(request.body.entries.length, bodyBytesOf(request))
      return streams.during(size, () => sendList(context, request, reply, request.body))
    },
  )
}

async function sendOne(context: Context, request: FastifyRequest, reply: FastifyReply, wished: Wished): Promise<void> {
  const layout = new Layout()
  layout.object(0, 0, wished.size)
  layout.end({ isTar: false })
  const { type, hex } = wished.hash
  const head: AnswerHead = {
    contentType: 'application/octet-stream',
    etag: `"${hashText(wished.hash)}"`,
    headers: type === 'SHA256' ? { 'repr-digest': `sha-256=:${Buffer.from(hex, 'hex').toString('base64')}:` } : {},
  }
  await sendHeld(context, request, reply, { layout, head, wished: [wished], isMarked: false })
}

async function sendList(context: Context, request: FastifyRequest, reply: FastifyReply, body: ListBody): Promise<void> {
  const byHashOnly = body.entries.filter(({ hash }) => hash !== undefined).map(({ hash }) => hash!)
  for (const { key, hash } of body.entries) {
    if ((key === undefined) === (hash === undefined))
      throw new BobbinError('INVALID_ARGUMENT', 'each entry is named by a key or by a hash')
  }
  const send = async (byKeyOf?: (key: string) => Wished) => {
    const { found, release } = await findByHash(context, byHashOnly)
    try {
      let nextHash = 0
      const wished = body.entries.map(({ key, hash }) =>
        key === undefined ? present(context, found[nextHash++], hash!) : byKeyOf!(key),
      )
      await sendHeld(context, request, reply, {
        layout: listLayout(body.entries.map((entry, i) => listed(entry, wished[i]!, i))),
        head: { contentType: 'application/x-tar', etag: null },
        wished,
        isMarked: body.onMissing === 'mark',
      })
    } finally {
      release()
    }
  }
  if (byHashOnly.length === body.entries.length) return send()
  const address = addressOf(context, body)
  return context.packages.use(address, opened => send(key => byKey(context, address, opened, key)))
}

function listed(
  { start = 0, length, opaque }: ListBody['entries'][number],
  wished: Wished,
  object: number,
): ListedEntry {
  const { key, size, hash } = wished
  if (start > size || start + (length ?? 0) > size)
    throw new BobbinError('INVALID_ARGUMENT', `${key ?? hash.hex} has ${size} bytes, not ${start + (length ?? 0)}`)
  return { key, size, hash: hashText(hash), start, length: length ?? size - start, opaque, object }
}

async function sendHeld(
  context: Context,
  request: FastifyRequest,
  reply: FastifyReply,
  answer: {
    readonly layout: Layout
    readonly head: AnswerHead
    readonly wished: readonly Wished[]
    readonly isMarked: boolean
  },
): Promise<void> {
  const { layout, head, wished, isMarked } = answer
  const hold = (signal: AbortSignal) => lease(context, wished, signal)
  await stream(context, request, reply, async signal => {
    const span = negotiate(request.raw, reply.raw, layout.bytes, head)
    if (span === undefined) return
    if (request.method === 'HEAD') {
      reply.raw.writeHead(span.status).end()
      return
    }
    const held = [await hold(signal)]
    let outcome: 'delivered' | 'aborted' = 'aborted'
    try {
      for (const [object, { error, key, hash }] of wished.entries()) {
        if (error === undefined) continue
        if (!isMarked) throw new BobbinError(error.code, withKey(error.message, key ?? hash.hex))
        markMissing(layout, object, key, error)
      }
      const objects: AnswerObjects = {
        prepare: async () => {},
        get: (object): PackedObject => wished[object]!,
        renew: async () => void held.push(await hold(signal)),
        sent: () => {},
      }
      await sendLayout({ response: reply.raw, layout, span, objects, packing: context.packing, signal })
      outcome = 'delivered'
    } finally {
      for (const release of held) release()
      const sent = reply.raw.headersSent ? byAddress(wished.filter(({ error }) => error === undefined)) : []
      for (const [address, those] of sent)
        context.deliveries.add({ ...address, keys: those.map(({ place }) => place.key), as: 'entry', outcome })
    }
  })
}

/** One lease per package. */
async function lease({ objects }: Context, wished: readonly Wished[], signal: AbortSignal): Promise<() => void> {
  const held: Lease[] = []
  const release = () => {
    for (const one of held) one.release()
  }
  try {
    for (const [address, those] of byAddress(wished)) {
      const inos = those.map(({ place }) => place.ino)
      const leased = await objects.lease([address], inos, { priority: 'demand', signal })
      held.push(leased)
      for (const one of those) {
        const error = leased.failed.get(one.place.ino)
        if (error !== undefined) one.error = error
      }
    }
  } catch (error) {
    release()
    throw error
  }
  return release
}

type PlacedWish = Wished & { readonly place: EntryPlace }

/** Those that are of a package, in groups of one package each. */
function byAddress(wished: readonly Wished[]): (readonly [PackageAddress, readonly PlacedWish[]])[] {
  const groups = new Map<string, PlacedWish[]>()
  for (const one of wished) {
    if (!isPlaced(one)) continue
    const { registry, package: name, topHash } = one.place.address
    const key = `${registry} ${name} ${topHash}`
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [one])
    else group.push(one)
  }
  return [...groups.values()].map(group => [group[0]!.place.address, group] as const)
}

function isPlaced(wished: Wished): wished is PlacedWish {
  return wished.place !== undefined
}

function byKey(context: Context, address: PackageAddress, opened: OpenedPackage, key: string): Wished {
  const node = opened.index.find(key)
  if (node === undefined)
    throw new BobbinError('ENTRY_NOT_FOUND', `no entry ${JSON.stringify(key)} in ${opened.name}@${opened.topHash}`)
  return { ...entryAt(context, address, opened, node.ino), key: opened.index.key(node.ino) }
}

function entryAt({ options }: Context, address: PackageAddress, { index }: OpenedPackage, ino: number): Wished {
  const { hash, size, physicalKey } = index.object(ino)
  const path = objectPath(options.daemon.cacheDir, objectId({ hash, size, physicalKey }))
  return { key: null, hash, size, path, place: { address, ino, key: index.key(ino) } }
}

function present({ door }: Context, found: Wished | undefined, hash: string): Wished {
  if (found !== undefined) return found
  const error = new BobbinError('ENTRY_NOT_FOUND', `the store has no object ${hash}: ask for it by its key`)
  throw door.isOwners ? error : door.found(error)
}

/** In the order of the hashes; `undefined` for what is not there. */
async function findByHash(
  context: Context,
  hashes: readonly string[],
): Promise<{ readonly found: readonly (Wished | undefined)[]; release(): void }> {
  if (hashes.length === 0) return { found: [], release() {} }
  const types = ['sha2-256-chunked', 'SHA256'] as const
  if (!context.door.isOwners) return { found: await findServed(context, hashes), release() {} }
  const { objects, options } = context
  const ids = types.flatMap(type => hashes.map(hash => `${type.toLowerCase()}/${hash}` as ObjectId))
  const { found, release } = await objects.find(ids)
  const wishedAt = (i: number): Wished | undefined => {
    const object = found[i]
    if (object == null) return undefined
    const hash = { type: types[Math.floor(i / hashes.length)]!, hex: hashes[i % hashes.length]! }
    return {
      key: null,
      hash,
      size: object.size,
      path: objectPath(options.daemon.cacheDir, object.id as ObjectId),
    }
  }
  return { found: hashes.map((_, i) => wishedAt(i) ?? wishedAt(hashes.length + i)), release }
}

/** Of others than the owner: what the packages have that are served, be it in the store or not. */
async function findServed(context: Context, hashes: readonly string[]): Promise<(Wished | undefined)[]> {
  const { byHash, packages } = context
  const found: (Wished | undefined)[] = []
  for (const hash of hashes) {
    const entry = await byHash.find(hash)
    found.push(
      entry && (await packages.use(entry.address, async opened => entryAt(context, entry.address, opened, entry.ino))),
    )
  }
  return found
}

/** Of a package that is open, that is served by its name, or that a plan was made of. */
function knownAddress({ packages, plans, door }: Context, topHash: string): PackageAddress | undefined {
  const isIt = (address: PackageAddress) => address.topHash === topHash
  const named = packages.addressOf(topHash) ?? door.served.revisions.find(isIt)
  if (named !== undefined) return named
  for (const address of plans.addresses()) if (isIt(address)) return address
  return undefined
}

function addressOf(context: Context, body: ListBody): PackageAddress {
  const { options } = context
  if (body.package === undefined) {
    const known = body.topHash === undefined ? undefined : knownAddress(context, body.topHash)
    if (known !== undefined) return known
    throw new BobbinError('INVALID_ARGUMENT', 'name the package, or the top hash of a package that a plan was made of')
  }
  const { registry, name, revision } = parseReference(body.package, {
    ...(body.topHash !== undefined && { topHash: body.topHash }),
    ...(options.defaultRegistry !== undefined && { defaultRegistry: options.defaultRegistry }),
  })
  if (revision.kind !== 'hash')
    throw new BobbinError('INVALID_ARGUMENT', `${body.package} has no top hash: a list is of one revision`)
  return { registry: formatRegistry(registry), package: name, topHash: parseTopHash(revision.prefix) }
}
