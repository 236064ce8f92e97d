/** Entries by key or by hash: one as it is, or a list of them, or of parts of them, as tar. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { BobbinError, type ObjectHash, parseTopHash } from '../../daemon/model/index.js'
import type { OpenedPackage } from '../../daemon/quilt/package-cache.js'
import { formatRegistry, parseReference } from '../../daemon/quilt/reference.js'
import { type ObjectId, objectId, objectPath } from '../../daemon/store/index.js'
import type { PackedObject } from '../batch/packing.js'
import { Layout } from '../format/layout.js'
import { hashText, type ListedEntry, listLayout, markMissing } from '../format/shard.js'
import { type AnswerHead, type AnswerObjects, negotiate, sendLayout } from './answer.js'
import { type Context, stream } from './context.js'
import type { PackageAddress } from './objects.js'
import { EntryParams, ListBody, ObjectParams } from './schema.js'
import { withKey } from './shards.js'

/** What somebody asked for, and what came of it. */
interface Wished {
  readonly key: string | null
  readonly hash: ObjectHash
  /** Bytes. */
  readonly size: number
  readonly path: string
  /** null: leased by its hash. */
  readonly ino: number | null
  error?: BobbinError
}

export function entryRoutes(app: FastifyInstance, context: Context): void {
  app.get<{ Params: { topHash: string; '*': string } }>(
    '/v1/p/:topHash/*',
    { schema: { params: EntryParams, summary: 'An entry by its key, of a package that a plan was made of' } },
    async (request, reply) => {
      const { topHash, '*': key } = request.params
      const address = knownAddress(context, topHash)
      if (address === undefined)
        throw new BobbinError('REVISION_NOT_FOUND', `this sidecar has no plan of the package ${topHash}`)
      await context.packages.use(address, async opened => {
        const wished = byKey(context, opened, key)
        await sendOne(context, request, reply, wished, signal => lease(context, address, [wished], signal), address)
      })
    },
  )

  app.get<{ Params: { hash: string } }>(
    '/v1/o/:hash',
    { schema: { params: ObjectParams, summary: 'An object of the store, by its SHA-256 value' } },
    async (request, reply) => {
      const { found, release } = await findByHash(context, [request.params.hash])
      try {
        await sendOne(context, request, reply, present(found[0], request.params.hash), async () => () => {})
      } finally {
        release()
      }
    },
  )

  app.post<{ Body: ListBody }>(
    '/v1/get',
    { schema: { body: ListBody, summary: 'Entries, or parts of them, as tar in the order asked for' } },
    async (request, reply) => sendList(context, request, reply, request.body),
  )
}

async function sendOne(
  context: Context,
  request: FastifyRequest,
  reply: FastifyReply,
  wished: Wished,
  hold: (signal: AbortSignal) => Promise<() => void>,
  address?: PackageAddress,
): Promise<void> {
  const layout = new Layout()
  layout.object(0, 0, wished.size)
  layout.end({ isTar: false })
  const { type, hex } = wished.hash
  const head: AnswerHead = {
    contentType: 'application/octet-stream',
    etag: `"${hashText(wished.hash)}"`,
    headers: type === 'SHA256' ? { 'repr-digest': `sha-256=:${Buffer.from(hex, 'hex').toString('base64')}:` } : {},
  }
  await sendHeld(context, request, reply, { layout, head, wished: [wished], hold, isMarked: false, address })
}

async function sendList(context: Context, request: FastifyRequest, reply: FastifyReply, body: ListBody): Promise<void> {
  const byHashOnly = body.entries.filter(({ hash }) => hash !== undefined).map(({ hash }) => hash!)
  for (const { key, hash } of body.entries) {
    if ((key === undefined) === (hash === undefined))
      throw new BobbinError('INVALID_ARGUMENT', 'each entry is named by a key or by a hash')
  }
  const send = async (address?: PackageAddress, opened?: OpenedPackage) => {
    const { found, release } = await findByHash(context, byHashOnly)
    try {
      let nextHash = 0
      const wished = body.entries.map(({ key, hash }) =>
        key === undefined ? present(found[nextHash++], hash!) : byKey(context, opened!, key),
      )
      await sendHeld(context, request, reply, {
        layout: listLayout(body.entries.map((entry, i) => listed(entry, wished[i]!, i))),
        head: { contentType: 'application/x-tar', etag: null },
        wished,
        address,
        isMarked: body.onMissing === 'mark',
        hold: async signal => (address === undefined ? () => {} : lease(context, address, wished, signal)),
      })
    } finally {
      release()
    }
  }
  if (byHashOnly.length === body.entries.length) return send()
  const address = addressOf(context, body)
  return context.packages.use(address, opened => send(address, opened))
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
    /** Of those that have a key. */
    readonly address: PackageAddress | undefined
    readonly isMarked: boolean
    readonly hold: (signal: AbortSignal) => Promise<() => void>
  },
): Promise<void> {
  const { layout, head, wished, address, isMarked, hold } = answer
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
      const keys = wished.flatMap(({ key, error }) => (key === null || error !== undefined ? [] : key))
      if (address !== undefined && keys.length > 0 && reply.raw.headersSent)
        context.deliveries.add({ ...address, keys, as: 'entry', outcome })
    }
  })
}

async function lease(
  { objects }: Context,
  address: PackageAddress,
  wished: readonly Wished[],
  signal: AbortSignal,
): Promise<() => void> {
  const inos = wished.flatMap(({ ino }) => (ino === null ? [] : [ino]))
  const held = await objects.lease(address, inos, { priority: 'demand', signal })
  for (const one of wished) {
    const error = one.ino === null ? undefined : held.failed.get(one.ino)
    if (error !== undefined) one.error = error
  }
  return () => held.release()
}

function byKey({ options }: Context, opened: OpenedPackage, key: string): Wished {
  const node = opened.index.find(key)
  if (node === undefined)
    throw new BobbinError('ENTRY_NOT_FOUND', `no entry ${JSON.stringify(key)} in ${opened.name}@${opened.topHash}`)
  const entry = opened.index.entry(node.ino)
  return {
    key: entry.key,
    hash: entry.hash,
    size: entry.size,
    path: objectPath(options.daemon.cacheDir, objectId(entry)),
    ino: node.ino,
  }
}

function present(found: Wished | undefined, hash: string): Wished {
  if (found !== undefined) return found
  throw new BobbinError('ENTRY_NOT_FOUND', `the store has no object ${hash}: ask for it by its key`)
}

/** In the order of the hashes; `undefined` for what is not there. */
async function findByHash(
  { objects, options }: Context,
  hashes: readonly string[],
): Promise<{ readonly found: readonly (Wished | undefined)[]; release(): void }> {
  if (hashes.length === 0) return { found: [], release() {} }
  const types = ['sha2-256-chunked', 'SHA256'] as const
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
      ino: null,
    }
  }
  return { found: hashes.map((_, i) => wishedAt(i) ?? wishedAt(hashes.length + i)), release }
}

/** Of a package that is open, or that a plan was made of. */
function knownAddress({ packages, plans }: Context, topHash: string): PackageAddress | undefined {
  return packages.addressOf(topHash) ?? plans.addresses().find(address => address.topHash === topHash)
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
