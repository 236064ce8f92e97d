/** A package of small samples, each an image's bytes with metadata and a class. */
import { createHash } from 'node:crypto'
import { type FileContent, type WrittenPackage, writeRegistry } from './registry.js'

/** `train/<i>.jpg` with metadata, `train/<i>.cls` without; what they hold follows from their names. */
export async function writeSamples(
  registry: string,
  count: number,
  { name = 'test/samples', bytes = 3000 }: { readonly name?: string; readonly bytes?: number } = {},
): Promise<WrittenPackage> {
  const files: Record<string, FileContent> = {}
  for (let i = 0; i < count; i++) {
    const base = `train/${String(i).padStart(6, '0')}`
    files[`${base}.jpg`] = {
      bytes: pattern(base, bytes + ((i * 7919) % bytes)),
      meta: { name: `${base}.jpg`, label: i % 10 },
      // quilt3's own kinds, in turn.
      hashType: i % 2 === 0 ? 'sha2-256-chunked' : 'SHA256',
    }
    files[`${base}.cls`] = { bytes: String(i % 10) }
  }
  return writeRegistry(registry, name, files)
}

export function sampleKeys(written: WrittenPackage): string[] {
  return written.rows.map(row => row.logical_key).filter(key => key.endsWith('.jpg'))
}

/** Bytes that no compression and no mistake makes alike. */
function pattern(seed: string, length: number): Buffer {
  const blocks: Buffer[] = []
  for (let i = 0, have = 0; have < length; i++, have += 32)
    blocks.push(createHash('sha256').update(`${seed} ${i}`).digest())
  return Buffer.concat(blocks).subarray(0, length)
}
