/** The rows of several ledgers as those of one: what is of one entry and one way becomes one row. */
import TinyQueue from 'tinyqueue'
import { type LedgerRow, nameOf } from './ledger-row.js'

interface Head {
  readonly name: string
  readonly row: LedgerRow
  readonly rest: AsyncIterator<LedgerRow>
}

/** Each of `ledgers` is in the order of ledgers, as is what comes out. One row of each is in memory. */
export async function* mergedRows(ledgers: readonly AsyncIterable<LedgerRow>[]): AsyncGenerator<LedgerRow> {
  const heads = new TinyQueue<Head>([], (a, b) => (a.name < b.name ? -1 : Number(a.name > b.name)))
  const take = async (rest: AsyncIterator<LedgerRow>) => {
    const next = await rest.next()
    if (!next.done) heads.push({ name: nameOf(next.value), row: next.value, rest })
  }
  for (const ledger of ledgers) await take(ledger[Symbol.asyncIterator]())
  let last: Pick<Head, 'name' | 'row'> | undefined
  for (let head = heads.pop(); head !== undefined; head = heads.pop()) {
    await take(head.rest)
    if (last?.name === head.name) {
      last = { name: last.name, row: folded(last.row, head.row) }
      continue
    }
    if (last !== undefined) yield last.row
    last = head
  }
  if (last !== undefined) yield last.row
}

function folded(a: LedgerRow, b: LedgerRow): LedgerRow {
  const first = b.first < a.first ? b.first : a.first
  return { ...a, count: a.count + b.count, aborted: a.aborted + b.aborted, first }
}
