/** The root over the leaves of a ledger, taken one by one: what is kept is a hash for each level of the tree. */
import { hash } from 'node:crypto'

export class MerkleTree {
  /** By level: the left half of a pair whose right half has not come yet. */
  readonly #left: (Buffer | undefined)[] = []

  add(text: string): void {
    let node: Buffer = sha256(text)
    let level = 0
    for (let left = this.#left[0]; left !== undefined; left = this.#left[++level]) {
      this.#left[level] = undefined
      node = joined(left, node)
    }
    this.#left[level] = node
  }

  /** Hex. An odd node at the end of a level goes up as it is; without leaves it is the SHA-256 of nothing. */
  root(): string {
    let root: Buffer | undefined
    for (const left of this.#left) {
      if (left !== undefined) root = root === undefined ? left : joined(left, root)
    }
    return (root ?? sha256('')).toString('hex')
  }
}

function joined(left: Buffer, right: Buffer): Buffer {
  return sha256(Buffer.concat([left, right]))
}

/** In one call, which leaves less for the garbage collector than a Hash does: there are two for each row. */
function sha256(bytes: string | Buffer): Buffer {
  return hash('sha256', bytes, 'buffer')
}
