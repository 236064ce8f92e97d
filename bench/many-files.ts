import { randomFillSync } from 'node:crypto'
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Half of it in objects of 128 MiB, half in objects of 256 KiB. Returns how many. */
export function writeFiles(folder: string, mib: number): number {
  const bytes = randomFillSync(Buffer.alloc(128 * 2 ** 20))
  mkdirSync(join(folder, 'large'), { recursive: true })
  mkdirSync(join(folder, 'small'))
  for (let i = 0; i < mib / 256; i++) {
    bytes.writeUInt32LE(i)
    writeFileSync(join(folder, 'large', `${i}.bin`), bytes)
  }
  const small = bytes.subarray(0, 256 * 1024)
  for (let i = 0; i < mib * 2; i++) {
    small.writeUInt32LE(i)
    writeFileSync(join(folder, 'small', `${i}.bin`), small)
  }
  return readdirSync(folder, { recursive: true, withFileTypes: true }).filter(entry => entry.isFile()).length
}
