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
}

/** What of a sample's members is the same wherever it stands. */
export interface SampleMembers {
  /** Of the index member: the text of the sample's members `files` and `metaSha256`. */
  readonly indexText: string
  /** In the byte order of their suffixes; a number is the file's number in the sample. */
  readonly members: readonly {
    readonly suffix: string
    readonly content: Buffer | { readonly file: number; readonly size: number }
  }[]
}

export interface ShardSample {
  readonly pos: number
  readonly step: number | null
  readonly isPad: boolean
  readonly facts: SampleMembers
  /** The answer's number of its first file. */
  readonly firstObject: number
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

/** `files` in the byte order of their suffixes. `metaSuffix`: of the metadata member; null: there is none. */
export function sampleMembers(files: readonly SampleFile[], metaSuffix: string | null, meta: string): SampleMembers {
  const members: SampleMembers['members'][number][] = files.map(({ suffix, size }, file) => ({
    suffix,
    content: { file, size },
  }))
  const rows = files.map(({ suffix, key, size, hash }) => [suffix, { key, size, hash: hashText(hash) }] as const)
  const indexText = `"files":${JSON.stringify(Object.fromEntries(rows))}`
  if (metaSuffix === null) return { indexText, members }
  const content = Buffer.from(meta)
  members.push({ suffix: metaSuffix, content })
  members.sort((a, b) => Buffer.compare(Buffer.from(a.suffix), Buffer.from(b.suffix)))
  return { indexText: `${indexText},"metaSha256":"${sha256(content)}"`, members }
}

const EMPTY = Buffer.alloc(0)

/** Throws INVALID_ARGUMENT for a name that does not fit into a header; plans with such names are refused earlier. */
export function shardLayout(head: ShardHead, samples: readonly ShardSample[]): Layout {
  const layout = new Layout()
  const index = Buffer.from(indexText(head, samples))
  layout.member(INDEX_NAME, index)
  let count = 1
  for (const { pos, isPad, facts, firstObject } of samples) {
    const base = positionName(pos)
    for (const { suffix, content } of facts.members) {
      const name = `${base}.${suffix}`
      if ('file' in content) layout.objectMember(name, firstObject + content.file, 0, content.size)
      else layout.member(name, content)
    }
    // Behind the others, whatever their suffixes: webdataset takes members of one name in any order.
    if (isPad) layout.member(`${base}.pad`, EMPTY)
    count += facts.members.length + (isPad ? 1 : 0)
  }
  end(layout, { members: count, samples: samples.length, cursor: head.nextCursor, index })
  return layout
}

/** Put together as text: it is made for each answer, and its largest part is the same each time. */
function indexText(head: ShardHead, samples: readonly ShardSample[]): string {
  const { planId, topHash, epoch, world, rank, steps, cursor } = head
  const before = JSON.stringify({
    schema: 'bobbin-index-1',
    plan: planId,
    topHash,
    epoch,
    world,
    rank,
    steps,
    cursor,
  }).slice(0, -1)
  const rows = samples.map(
    ({ pos, step, isPad, facts }) => `{"pos":${pos},"pad":${isPad},"step":${step},${facts.indexText}}`,
  )
  return `${before},"samples":[${rows.join(',')}]}`
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
  // Not of the bytes so far: the index names the hash of everything behind it (but of what stands in the place of a
  // missing file), so its own hash proves as much and is known before a byte was read; hashing what is served would
  // halve the speed and make ranges wait.
  const indexSha256 = sha256(index)
  // What was written so far is in segments only when something else begins.
  const document = { schema: 'bobbin-end-1', members, samples, bytes: layout.written, cursor, indexSha256 }
  layout.member(END_NAME, Buffer.from(JSON.stringify(document)))
  layout.end({ isTar: true })
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
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
