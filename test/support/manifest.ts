/** Manifests for tests, and their top hash by the plainest means: whole in memory, `JSON.parse`, `sort`. */
import { createHash } from 'node:crypto'

export interface Row {
  readonly logical_key: string
  readonly physical_keys?: readonly string[] | null
  readonly size?: unknown
  readonly hash?: unknown
  readonly meta?: unknown
}

export const HASH_OF_A = { type: 'sha2-256-chunked', value: 'v106/7c+/S7Gw2rTES3ZM+/tY8Thy//PqI4nWcFE8tg=' }

export function fileRow(logical_key: string, other: Partial<Row> = {}): Row {
  return {
    logical_key,
    physical_keys: [`s3://bucket/${encodeURIComponent(logical_key.toWellFormed())}`],
    size: 1,
    hash: HASH_OF_A,
    meta: {},
    ...other,
  }
}

export function manifestText(rows: readonly Row[], header: object = { version: 'v0', message: null }): string {
  return [header, ...rows].map(row => `${JSON.stringify(row)}\n`).join('')
}

/** Right only for values whose numbers survive JSON.parse, keys in the basic plane, and ASCII text without 0x7F. */
export function topHashOf(rows: readonly Row[], header: object = { version: 'v0', message: null }): string {
  const hash = createHash('sha256').update(sortedJson(header))
  const files = rows.filter(row => row.physical_keys?.length)
  const order = files.map(row => ({ row, parts: row.logical_key.split('/') }))
  order.sort((a, b) => compareParts(a.parts, b.parts))
  for (const { row } of order) {
    hash.update(sortedJson({ hash: row.hash, logical_key: row.logical_key, meta: row.meta ?? {}, size: row.size }))
  }
  return hash.digest('hex')
}

function compareParts(a: readonly string[], b: readonly string[]): number {
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    const order = Buffer.compare(Buffer.from(a[i]!), Buffer.from(b[i]!))
    if (order !== 0) return order
  }
  return a.length - b.length
}

function sortedJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(sortedJson).join(',')}]`
  if (typeof value === 'object' && value !== null) {
    const members = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
    return `{${members.map(([key, member]) => `${JSON.stringify(key)}:${sortedJson(member)}`).join(',')}}`
  }
  return JSON.stringify(value).replace(/[^\x20-\x7e]/g, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
