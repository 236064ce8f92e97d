/**
 * What a new revision has, entry by entry, in tree order: the one form that every verb that writes packages brings its
 * entries into. `revision-entries.ts` makes rows of it.
 */
import { BobbinError, compareTreeOrder, type LogicalKey, type ObjectSpec, type S3Key } from '../../model/index.js'

interface AnyItem {
  readonly key: LogicalKey
  /** Bytes, as it was seen. */
  readonly size: number
}

/** An entry of another revision: its row comes along as it is, but for what is changed. */
export interface RowItem extends AnyItem {
  readonly kind: 'row'
  /** Of the manifest; the header is row 1. */
  readonly row: number
  readonly object: () => ObjectSpec
  /** JSON text. */
  readonly userMeta: () => string | undefined
}

/** A file of this machine, which is stored. */
export interface FileItem extends AnyItem {
  readonly kind: 'file'
  readonly path: string
}

/** An object that lies in a bucket, of which no manifest says anything yet. */
export interface ObjectItem extends AnyItem {
  readonly kind: 'object'
  readonly at: S3Key
}

export type Item = RowItem | FileItem | ObjectItem

/**
 * Both in tree order. Of two with one key the second sequence's is taken. Throws INVALID_ARGUMENT when a key is a file and
 * a folder.
 */
export async function* merged(first: AsyncIterable<Item>, second: AsyncIterable<Item>): AsyncGenerator<Item> {
  const [a, b] = [first[Symbol.asyncIterator](), second[Symbol.asyncIterator]()]
  let last: Item | undefined
  let [x, y] = [await a.next(), await b.next()]
  try {
    while (!x.done || !y.done) {
      const order = x.done ? 1 : y.done ? -1 : compareTreeOrder(Buffer.from(x.value.key), Buffer.from(y.value.key))
      const item = (order < 0 ? x.value : y.value) as Item
      if (order <= 0) x = await a.next()
      if (order >= 0) y = await b.next()
      if (last !== undefined && item.key.startsWith(`${last.key}/`)) {
        throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(last.key)} would be an entry and a folder`)
      }
      last = item
      yield item
    }
  } finally {
    await a.return?.()
    await b.return?.()
  }
}
