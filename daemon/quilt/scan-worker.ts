/** A worker thread of scan-pool.ts. */
import { move, transferableSymbol, valueSymbol } from 'piscina'
import type { ScanTask } from './scan-pool.js'
import { RowScanner, type ScannedPiece } from './scan-rows.js'

const scanners = new Map<string, RowScanner>()

export default function scan(task: ScanTask): unknown {
  let scanner = scanners.get(task.registryKind)
  if (scanner === undefined) {
    scanner = new RowScanner(task.registryKind)
    scanners.set(task.registryKind, scanner)
  }
  return move(new Outgoing(scanner.scan(Buffer.from(task.bytes, 0, task.length), (_line, from) => task.offset + from)))
}

/** Tells piscina which memory to hand over instead of copying it. */
class Outgoing {
  constructor(private readonly piece: ScannedPiece) {}
  get [transferableSymbol](): ArrayBufferLike[] {
    const { nodes, places, text, canonical } = this.piece
    return [nodes.buffer, places.buffer, text.buffer, canonical.buffer]
  }
  get [valueSymbol](): ScannedPiece {
    return this.piece
  }
}
