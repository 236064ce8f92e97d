/** Real objects in a folder, as entries with `file://` keys, and a log that remembers. */
import { createCipheriv } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Entry, HashType, Log, LogicalKey } from '../../daemon/model/index.js'
import { createObjectHasher } from '../../daemon/model/object-hash.js'

/** Writes the bytes to `<folder>/<key>` and gives the entry that names them. */
export async function writeEntry(
  folder: string,
  key: string,
  bytes: Uint8Array | string,
  type: HashType = 'SHA256',
): Promise<Entry> {
  const body = Buffer.from(bytes)
  const path = join(folder, key)
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, body)
  const hasher = await createObjectHasher(type, body.length)
  hasher.update(body)
  return {
    key: key as LogicalKey,
    physicalKey: { kind: 'file', path },
    size: body.length,
    hash: { type, hex: hasher.digest() },
  }
}

/** Pseudo-random, the same for the same seed. */
export function noise(length: number, seed = 1): Buffer {
  const key = Buffer.alloc(16)
  key.writeUInt32LE(seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}

export interface RememberingLog extends Log {
  readonly lines: { readonly level: string; readonly fields: Record<string, unknown>; readonly message: string }[]
}

export function rememberingLog(): RememberingLog {
  const lines: RememberingLog['lines'] = []
  const at = (level: string) => (fields: object, message: string) => {
    lines.push({ level, fields: fields as Record<string, unknown>, message })
  }
  return { lines, info: at('info'), warn: at('warn'), error: at('error') }
}
