/** A worker thread of scan-pool.ts. */
import '../model/library-words.js'
import type { ScanTask } from './scan-pool.js'
import { RowScanner, type ScannedPiece } from './scan-rows.js'

const scanners = new Map<string, RowScanner>()

export default function scan({ bytes, offset, registryKind, memory }: ScanTask): ScannedPiece {
  let scanner = scanners.get(registryKind)
  if (scanner === undefined) {
    scanner = new RowScanner(registryKind)
    scanners.set(registryKind, scanner)
  }
  const piece = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  return scanner.scan(piece, (_line, from) => offset + from, memory)
}
