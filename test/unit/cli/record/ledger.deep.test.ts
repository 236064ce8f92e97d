/** The ledger: its format and its counts are those of always, whatever its length; rows are never all in memory. */
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { countLedger, readLedger, writeLedger } from '../../../../cli/record/ledger.js'
import { type LedgerRow, nameOf } from '../../../../cli/record/ledger-row.js'
import { mergedRows } from '../../../../cli/record/merge-rows.js'
import { MerkleTree } from '../../../../cli/record/merkle.js'
import { PackageRows } from '../../../../cli/record/package-rows.js'
import { Tally } from '../../../../cli/record/tally.js'
import { parsePackageName } from '../../../../daemon/model/index.js'
import { openPackage } from '../../../../daemon/package/package-cache.js'
import { parseRegistry } from '../../../../daemon/registry/reference.js'
import { createSource } from '../../../../daemon/source/index.js'
import { runProgram } from '../../../support/cli.js'
import { writeRegistry } from '../../../support/registry.js'

const root = new URL('../../../support/', import.meta.url).pathname
const TIME = Date.UTC(2026, 0, 1)
const FIRST = new Date(TIME).toISOString()

function rowOf(key: string, other: Partial<LedgerRow> = {}): LedgerRow {
  const hash = createHash('sha256').update(key).digest('hex')
  const common = { package: 'a/b', topHash: 'f'.repeat(64), hashType: 'SHA256', via: 'fuse', first: FIRST } as const
  return { ...common, key, hash, size: 3, count: 1, aborted: 0, ...other }
}

function inOrder(rows: readonly LedgerRow[]): LedgerRow[] {
  return [...rows].sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1))
}

/** As it was defined: level by level, an odd node going up as it is. */
function plainRoot(texts: readonly string[]): string {
  const sha256 = (...parts: readonly (string | Buffer)[]) =>
    parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()
  let level = texts.map(text => sha256(text))
  if (level.length === 0) return sha256('').toString('hex')
  while (level.length > 1) {
    const pairs = Array.from({ length: Math.ceil(level.length / 2) }, (_, i) => level.slice(2 * i, 2 * i + 2))
    level = pairs.map(pair => (pair.length === 2 ? sha256(...pair) : pair[0]!))
  }
  return level[0]!.toString('hex')
}

t.test('MerkleTree has the root that is defined level by level', async t => {
  for (let leaves = 0; leaves < 70; leaves++) {
    const texts = Array.from({ length: leaves }, (_, i) => `leaf ${i}`)
    const tree = new MerkleTree()
    for (const text of texts) tree.add(text)
    t.equal(tree.root(), plainRoot(texts), `${leaves} leaves`)
  }
})

t.test('a ledger is JSON lines, and what is said of it is what its rows say', async t => {
  const path = join(t.testdir(), 'reads.jsonl')
  // A line separator is no line feed, and a long key is longer than a piece that is written.
  const keys = ['a', 'a\u2028b', 'é', '\ud83d\ude00', '\uff01', 'x'.repeat(300_000)]
  const rows = inOrder([...keys.map(key => rowOf(key)), rowOf('a', { via: 'tar', count: 0, aborted: 2 })])
  const written = await writeLedger(path, rows)
  const text = rows.map(row => `${JSON.stringify(row)}\n`).join('')
  t.equal(readFileSync(path, 'utf8'), text)
  t.strictSame(written.facts, {
    sha256: createHash('sha256').update(text).digest('hex'),
    rows: 7,
    entriesRead: 6,
    bytesRead: 18,
    merkleRoot: plainRoot(rows.map(({ key, hash }) => `${key}\0${hash}`)),
  })
  const seen: LedgerRow[] = []
  const counted = await countLedger(path, async row => void seen.push(row))
  t.strictSame(seen, rows)
  t.strictSame(counted, written)
})

t.test('what is no ledger is refused, with its line', async t => {
  const folder = t.testdir()
  const path = join(folder, 'reads.jsonl')
  const read = async (text: string) => {
    writeFileSync(path, text)
    for await (const _ of readLedger(path));
  }
  const [a, b] = ['a', 'b'].map(key => JSON.stringify(rowOf(key)))
  await t.resolves(read(`${a}\n${b}`))
  await t.rejects(read(`${a}\n{}\n`), { code: 'INVALID_ARGUMENT', message: `${path}, line 2: not a row of a ledger` })
  await t.rejects(read(`${b}\n${a}\n`), { code: 'INVALID_ARGUMENT', message: /line 2: not in the order/ })
  await t.rejects(read(`${a}\n${a}\n`), { code: 'INVALID_ARGUMENT', message: /line 2: not in the order/ })
  await t.rejects(read('x'.repeat(3 * 2 ** 20)), { code: 'INVALID_ARGUMENT', message: /a line of more than/ })
  await t.rejects(
    countLedger(join(folder, 'none'), async () => {}),
    { code: 'LOCAL_IO' },
  )
})

t.test('rows of several ledgers are in order, and one for each entry and way', async t => {
  async function* ledger(...rows: readonly LedgerRow[]) {
    yield* inOrder(rows)
  }
  const late = new Date(TIME + 5).toISOString()
  const merged: LedgerRow[] = []
  const ledgers = [
    ledger(rowOf('a', { first: late }), rowOf('c')),
    ledger(),
    ledger(rowOf('a', { count: 2, aborted: 1 }), rowOf('a', { via: 'paths' }), rowOf('b')),
    ledger(rowOf('c'), rowOf('d', { package: 'a/a' })),
  ]
  for await (const row of mergedRows(ledgers)) merged.push(row)
  t.strictSame(merged, [
    rowOf('d', { package: 'a/a' }),
    rowOf('a', { count: 3, aborted: 1, first: FIRST }),
    rowOf('a', { via: 'paths' }),
    rowOf('b'),
    rowOf('c', { count: 2 }),
  ])
})

t.test('a Tally counts, and keeps the first time, beyond what its small numbers hold', async t => {
  const tally = new Tally()
  t.equal(tally.isEmpty, true)
  for (let i = 0; i < 140_000; i++) tally.add(70_000, TIME + i)
  tally.add(70_001, TIME, { isAborted: true })
  // Half a year before the others of its page, and half a year behind.
  const halfYear = 183 * 24 * 60 * 60 * 1000
  tally.add(70_002, TIME - halfYear)
  tally.add(70_003, TIME + halfYear)
  tally.add(70_003, TIME + 7)
  tally.add(1, TIME)
  t.strictSame([...tally.inos()], [1, 70_000, 70_001, 70_002, 70_003])
  t.strictSame(tally.get(70_000), { count: 140_000, aborted: 0, first: TIME })
  t.strictSame(tally.get(70_001), { count: 0, aborted: 1, first: TIME })
  t.strictSame(tally.get(70_002), { count: 1, aborted: 0, first: TIME - halfYear })
  t.strictSame(tally.get(70_003), { count: 2, aborted: 0, first: TIME + 7 })
  t.equal(tally.get(2), undefined)
  t.equal(tally.has(65_536 * 3), false)
})

t.test('PackageRows has what was read, in the order of keys, whatever the names', async t => {
  const folder = t.testdir()
  // Behind a folder's name and before its slash; and what UTF-8 and UTF-16 put in another order.
  const names = [
    'a',
    'a!',
    'a-',
    'a0',
    'b/c',
    'b.txt',
    'b/\uff01',
    'b/\ud83d\ude00',
    'b/\ue000x',
    '\uff01/x',
    '\ud83d\ude00',
  ]
  const keys = names.flatMap(name => (name === 'a' ? ['a/x', 'a/y'] : [name]))
  const registry = join(folder, 'registry')
  const { topHash } = await writeRegistry(registry, 'a/b', Object.fromEntries(keys.map(key => [key, { bytes: key }])))
  const source = createSource({ ioTimeoutMs: 30_000, offline: false })
  t.teardown(() => source.close())
  const opened = await openPackage(
    {
      registry: parseRegistry(`file://${registry}`),
      name: parsePackageName('a/b'),
      revision: { kind: 'hash', prefix: topHash },
    },
    { cacheDir: join(folder, 'cache'), source, offline: false, quarantine: false },
  )
  t.teardown(() => opened.close())
  const [fuse, tar] = [new Tally(), new Tally()]
  const inoOf = (key: string) => opened.index.find(key)!.ino
  const read = keys.filter(key => key !== 'a/y')
  for (const [i, key] of read.entries()) fuse.add(inoOf(key), TIME + i)
  fuse.add(inoOf('a/x'), TIME + 99)
  tar.add(inoOf('b/c'), TIME, { isAborted: true })
  // Records that were damaged: a folder, and a number that there is not.
  fuse.add(inoOf('b'), TIME)
  fuse.add(1_000_000, TIME)
  const rows = new PackageRows(opened, [
    ['fuse', fuse],
    ['tar', tar],
  ])
  const found = [...rows]
  t.equal(rows.lost, 2)
  t.strictSame(found, inOrder(found))
  t.strictSame(
    found.map(({ key, via }) => `${key} ${via}`).sort(),
    [...read.map(key => `${key} fuse`), 'b/c tar'].sort(),
  )
  t.match(
    found.find(({ key }) => key === 'a/x'),
    { count: 2, aborted: 0, first: FIRST, via: 'fuse', size: 3 },
  )
  t.match(
    found.find(({ via }) => via === 'tar'),
    { count: 0, aborted: 1, first: FIRST, key: 'b/c' },
  )
})

const ROWS = 300_000
/** The promise is made for 10,000,000 rows, whose counts take 60 MB more. */
const MIB_MAX = 256

t.test(`${ROWS} rows are written, checked and merged in ${MIB_MAX} MiB (S86)`, async t => {
  const folder = t.testdir()
  for (const step of ['make', 'finish', 'verify', 'merge']) {
    const { status, stdout, stderr } = await runProgram(process.execPath, [
      join(root, 'large-run.js'),
      step,
      folder,
      String(ROWS),
    ])
    t.equal(status, 0, stderr)
    const [said, facts] = [stdout.trim().split('\n').slice(0, -1), stdout.trim().split('\n').at(-1)!]
    const { peakMiB, seconds } = JSON.parse(facts) as { peakMiB: number; seconds: number }
    t.comment(`${step}: ${peakMiB} MiB, ${seconds} s`)
    if (step !== 'make') t.ok(peakMiB <= MIB_MAX, `${step} takes ${peakMiB} MiB`)
    if (step === 'verify')
      t.strictSame(JSON.parse(said[0]!), {
        problems: [],
        remarks: ['it is not signed (bobbin run --key)'],
        reads: ROWS,
      })
  }
})
