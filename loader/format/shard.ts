/** Samples as a WebDataset tar, between an index and an end member (protocol.md, Tar). */
import { createHash } from 'node:crypto'
import type { BobbinError, ObjectHash } from '../../daemon/model/index.js'
import { Layout, MESSAGE_BYTES_MAX } from './layout.js'

export interface SampleFile {
  readonly suffix: string
  readonly key: string
  /** Bytes. */
  readonly size: number
  readonly hash: ObjectHash
  /** The answer's number of the object. */
  readonly object: number
}

export interface ShardSample {
  readonly pos: number
  readonly step: number | null
  readonly isPad: boolean
  /** In order of suffix. */
  readonly files: readonly SampleFile[]
  /** JSON text of the metadata member. */
  readonly meta: string
}

export interface ShardHead {
  readonly planId: string
  readonly topHash: string
  readonly epoch: number
  readonly world: number
  readonly rank: number
  readonly steps: readonly number[]
  /** Of the first sample; null for an answer that is no stretch of the epoch. */
  readonly cursor: string | null
  /** Behind the last step. */
  readonly nextCursor: string | null
  /** Suffix of the metadata members; null: there are none. */
  readonly metaSuffix: string | null
}

const INDEX_NAME = '__bobbin__/index.json'
const END_NAME = '__bobbin__/end.json'
const POSITION_DIGITS = 8

/** `<type>:<hex>`, everywhere in answers. */
export function hashText({ type, hex }: ObjectHash): string {
  return `${type}:${hex}`
}

export function positionName(pos: number): string {
  return String(pos).padStart(POSITION_DIGITS, '0')
}

/** Throws INVALID_ARGUMENT for a name that does not fit into a header; plans with such names are refused earlier. */
export function shardLayout(head: ShardHead, samples: readonly ShardSample[]): Layout {
  const layout = new Layout()
  const index = Buffer.from(indexText(head, samples))
  layout.member(INDEX_NAME, index)
  let members = 1
  for (const sample of samples) {
    const base = positionName(sample.pos)
    const others = [
      ...(head.metaSuffix === null ? [] : [{ suffix: head.metaSuffix, bytes: Buffer.from(sample.meta) }]),
      ...(sample.isPad ? [{ suffix: 'pad', bytes: Buffer.alloc(0) }] : []),
    ]
    for (const item of sorted([...sample.files, ...others])) {
      const name = `${base}.${item.suffix}`
      if ('bytes' in item) layout.member(name, item.bytes)
      else layout.objectMember(name, item.object, 0, item.size)
      members++
    }
  }
  end(layout, { members, samples: samples.length, cursor: head.nextCursor, index })
  return layout
}

function sorted<T extends { readonly suffix: string }>(items: T[]): T[] {
  return items.sort((a, b) => Buffer.compare(Buffer.from(a.suffix), Buffer.from(b.suffix)))
}

function indexText(head: ShardHead, samples: readonly ShardSample[]): string {
  return JSON.stringify({
    schema: 'bobbin-index-1',
    plan: head.planId,
    topHash: head.topHash,
    epoch: head.epoch,
    world: head.world,
    rank: head.rank,
    steps: head.steps,
    cursor: head.cursor,
    samples: samples.map(({ pos, step, isPad, files }) => ({
      pos,
      pad: isPad,
      step,
      files: Object.fromEntries(
        files.map(({ suffix, key, size, hash }) => [suffix, { key, size, hash: hashText(hash) }]),
      ),
    })),
  })
}

export interface ListedEntry {
  readonly key: string | null
  /** Of the whole object. */
  readonly size: number
  readonly hash: string
  readonly start: number
  readonly length: number
  readonly opaque?: unknown
  readonly object: number
}

/** Entries that somebody asked for, in that order. */
export function listLayout(entries: readonly ListedEntry[]): Layout {
  const layout = new Layout()
  const named = entries.map((entry, i) => ({ ...entry, name: `${positionName(i)}.bin` }))
  const index = Buffer.from(
    JSON.stringify({
      schema: 'bobbin-list-1',
      entries: named.map(({ name, key, size, hash, start, length, opaque }) => ({
        name,
        key,
        size,
        hash,
        start,
        length,
        ...(opaque !== undefined && { opaque }),
      })),
    }),
  )
  layout.member(INDEX_NAME, index)
  for (const { name, object, start, length } of named) layout.objectMember(name, object, start, length)
  end(layout, { members: 1 + named.length, samples: named.length, cursor: null, index })
  return layout
}

function end(
  layout: Layout,
  facts: { members: number; samples: number; cursor: string | null; index: Uint8Array },
): void {
  const { members, samples, cursor, index } = facts
  // Not of the bytes so far: the index names the hash of everything behind it, so its own hash proves as much
  // and is known before a byte was read; hashing what is served would halve the speed and make ranges wait.
  const indexSha256 = createHash('sha256').update(index).digest('hex')
  const document = { schema: 'bobbin-end-1', members, samples, bytes: layout.bytes, cursor, indexSha256 }
  layout.member(END_NAME, Buffer.from(JSON.stringify(document)))
  layout.end()
}

/** With `onMissing: mark`: what stands in the place of an entry that cannot be had. */
export function markMissing(layout: Layout, object: number, key: string | null, { code, message }: BobbinError): void {
  layout.replace(object, name => {
    const text = (detail: string) => JSON.stringify({ key, code, detail })
    let detail = message
    while (Buffer.byteLength(text(detail)) > MESSAGE_BYTES_MAX && detail !== '')
      detail = detail.slice(0, Math.floor(detail.length * 0.8))
    const whole = text(detail)
    return {
      name: `${name}.error.json`,
      text: Buffer.byteLength(whole) <= MESSAGE_BYTES_MAX ? whole : JSON.stringify({ code }),
    }
  })
}
