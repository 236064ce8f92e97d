import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { PackageIndex } from '../../../../daemon/index/package-index.js'
import { compileManifest } from '../../../../daemon/manifest/compile.js'
import type { TopHash } from '../../../../daemon/model/index.js'
import { formatCursor, parseCursor } from '../../../../loader/plan/cursor.js'
import { Epoch } from '../../../../loader/plan/epoch.js'
import { Permutation } from '../../../../loader/plan/permutation.js'
import { normalisePlan, type PlanBody, planIdOf } from '../../../../loader/plan/plan-document.js'
import { findSamples, sampleNameOf } from '../../../../loader/plan/samples.js'
import { formatShardName, parseShardName, stepsPerShard } from '../../../../loader/plan/shard-name.js'
import { buildSampleTable, SampleTable } from '../../../../loader/supply/sample-table.js'
import { fileRow, manifestText, type Row, topHashOf } from '../../../support/manifest.js'
import { repository } from '../../../support/parts.js'

interface OrderCase {
  readonly n: number
  readonly topHash: string
  readonly seed: string
  readonly epoch: number
  readonly positions: readonly number[]
  readonly samples: readonly number[]
}

const TOP_HASH = 'ab'.repeat(32) as TopHash

function plan(body: Omit<PlanBody, 'package'> = {}, topHash = TOP_HASH) {
  return normalisePlan({ package: 's3://bucket/ns/name', ...body }, topHash)
}

/** By Python, from the page that defines the order. */
function samplesOf(cases: readonly Omit<OrderCase, 'samples'>[]): number[][] {
  const program = `
import json, sys
sys.path.insert(0, sys.argv[1])
from qperm import Permutation
for case in json.load(sys.stdin):
    order = Permutation(case["n"], case["topHash"], case["seed"], case["epoch"])
    print(json.dumps([order.at(position) for position in case["positions"]]))
`
  const { stdout, stderr } = spawnSync('python3', ['-c', program, join(repository, 'test/support')], {
    input: JSON.stringify(cases),
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  })
  if (stderr !== '') throw new Error(stderr)
  return stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as number[])
}

t.test('qperm-1 is what its page says, to another implementation as well (S27)', async t => {
  const cases = JSON.parse(readFileSync(join(repository, 'loader/plan/qperm-vectors.json'), 'utf8')) as OrderCase[]
  t.ok(cases.length > 50)
  for (const { n, positions, samples, ...key } of cases) {
    const order = new Permutation(n, key)
    t.same(
      positions.map(position => order.at(position)),
      samples,
      `${n} samples, seed ${key.seed}, epoch ${key.epoch}`,
    )
    t.same(
      samples.map(sample => order.positionOf(sample)),
      positions,
      'and back',
    )
  }
  const sizes = fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 2 ** 52 }))
  const random = fc.sample(
    fc.record({
      n: sizes,
      seed: fc.string({ unit: 'grapheme' }),
      epoch: fc.nat(),
      share: fc.double({ min: 0, max: 0.9999999, noNaN: true }),
    }),
    1000,
  )
  const asked = random.map(({ n, seed, epoch, share }, i) => {
    return { n, seed, epoch, topHash: String(i).padStart(64, '0'), positions: [Math.floor(share * n)] }
  })
  const found = samplesOf(asked)
  const wrong = asked.filter((one, i) => new Permutation(one.n, one).at(one.positions[0]!) !== found[i]![0])
  t.same(wrong, [], 'a thousand random cases')
})

t.test('Permutation gives every sample one position', async t => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 3000 }), fc.string(), fc.nat(), (n, seed, epoch) => {
      const order = new Permutation(n, { topHash: TOP_HASH, seed, epoch })
      const seen = new Set<number>()
      for (let position = 0; position < n; position++) {
        const sample = order.at(position)
        if (sample < 0 || sample >= n || order.positionOf(sample) !== position) return false
        seen.add(sample)
      }
      return seen.size === n
    }),
    { numRuns: 300 },
  )
  for (const n of [0, -1, 1.5, 2 ** 52 + 1, Number.NaN])
    t.throws(() => new Permutation(n, { topHash: TOP_HASH, seed: '', epoch: 0 }), { code: 'INVALID_ARGUMENT' })
})

t.test('Permutation shuffles', async t => {
  // Seeds are fixed, so this is no matter of luck: each is the chance of 1 in 10,000 at most for what is even.
  for (const [n, seeds] of [
    [7, 4000],
    [10, 4000],
    [64, 6000],
    [100, 8000],
  ] as const) {
    const counts = new Float64Array(n * n)
    const pairs = new Float64Array(n)
    for (let seed = 0; seed < seeds; seed++) {
      const order = new Permutation(n, { topHash: TOP_HASH, seed: String(seed), epoch: 0 })
      let before = order.at(n - 1)
      for (let position = 0; position < n; position++) {
        const sample = order.at(position)
        counts[position * n + sample]!++
        pairs[(sample - before + n) % n]!++
        before = sample
      }
    }
    const expected = seeds / n
    const chi = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0)
    const df = (n - 1) ** 2
    t.ok(chi < df + 4 * Math.sqrt(2 * df), `${n}: any sample is anywhere (chi² ${chi.toFixed(0)} of ${df})`)
    // Neighbours: every distance but zero as often as another.
    const each = (seeds * n) / (n - 1)
    const spread = pairs.slice(1).reduce((sum, count) => sum + (count - each) ** 2 / each, 0)
    t.ok(
      spread < n - 2 + 6 * Math.sqrt(2 * n),
      `${n}: and says nothing of the next (chi² ${spread.toFixed(0)} of ${n - 2})`,
    )
    t.equal(pairs[0], 0)
  }
  const n = 1000
  const [a, b] = [0, 1].map(epoch => new Permutation(n, { topHash: TOP_HASH, seed: '0', epoch }))
  const same = Array.from({ length: n }, (_, i) => a!.at(i) === b!.at(i)).filter(Boolean).length
  t.ok(same < 10, `another epoch is another order: ${same} of ${n} in their places`)
})

t.test('Epoch is constant in memory: 50,000,000 samples', async t => {
  const document = plan({ batch: { global: 1024 } })
  new Epoch(document, 1000, 0).sampleAt(0)
  const before = process.memoryUsage().heapUsed + process.memoryUsage().external
  const started = performance.now()
  const epoch = new Epoch(document, 50_000_000, 3)
  const samples = Array.from({ length: 1024 }, (_, i) => epoch.sampleAt(25_000_000 + i).sample)
  const ms = performance.now() - started
  const bytes = process.memoryUsage().heapUsed + process.memoryUsage().external - before
  t.comment(`start and a batch in ${ms.toFixed(2)} ms, ${bytes} bytes`)
  t.equal(new Set(samples).size, 1024)
  t.ok(bytes < 2 ** 20, `${bytes} bytes`)
  t.equal(epoch.steps, 48_829)
})

t.test('Epoch shares every step out, over any world, and tells the next use', async t => {
  const tails = fc.constantFrom('pad' as const, 'drop' as const, 'uneven' as const)
  const worlds = fc.constantFrom(1, 2, 3, 4, 8)
  fc.assert(
    fc.property(
      fc.integer({ min: 24, max: 400 }),
      tails,
      worlds,
      fc.nat({ max: 5 }),
      (samples, tail, world, number) => {
        const epoch = new Epoch(plan({ batch: { global: 24, tail } }), samples, number)
        const positions: number[] = []
        for (let step = 0; step < epoch.steps; step++)
          for (let rank = 0; rank < world; rank++) {
            const { first, end } = epoch.slice(step, rank, world)
            for (let position = first; position < end; position++) positions.push(position)
          }
        const counts = new Map<number, number>()
        for (const position of positions) {
          const { sample, isPad } = epoch.sampleAt(position)
          if (!isPad) counts.set(sample, (counts.get(sample) ?? 0) + 1)
        }
        const whole = tail === 'drop' ? Math.floor(samples / 24) * 24 : samples
        const next = new Epoch(plan({ batch: { global: 24, tail } }), samples, number + 1)
        const isNextRight = positions.every(position => {
          const distance = epoch.nextUse(position)
          if (!Number.isFinite(distance)) return tail === 'drop'
          return next.sampleAt(position + distance - epoch.positions).sample === epoch.sampleAt(position).sample
        })
        return (
          positions.every((position, i) => position === i) &&
          counts.size === whole &&
          [...counts.values()].every(count => count === 1) &&
          isNextRight
        )
      },
    ),
    { numRuns: 400 },
  )
  const epoch = new Epoch(plan({ batch: { global: 24 } }), 100, 0)
  t.throws(() => epoch.check(0, 5), { code: 'INVALID_ARGUMENT', message: /5 ranks/ })
  t.throws(() => epoch.check(2, 2), { code: 'INVALID_ARGUMENT', message: /ranks 0 to 1/ })
  t.throws(() => epoch.slice(5, 0, 1), { code: 'INVALID_ARGUMENT', message: /5 steps/ })
})

t.test('planIdOf is the hash of one spelling', async t => {
  const spelled = plan({ select: ['b', 'a', 'b'], order: { algo: 'qperm-1', seed: '0' }, batch: { tail: 'pad' } })
  t.equal(planIdOf(spelled), planIdOf(plan({ select: ['a', 'b'] })))
  t.not(planIdOf(spelled), planIdOf(plan({ select: ['a'] })))
  t.not(planIdOf(plan()), planIdOf(plan({}, 'cd'.repeat(32) as TopHash)))
  const python = spawnSync('python3', [
    '-c',
    'import hashlib,json,sys; print(hashlib.sha256(json.dumps(json.loads(sys.argv[1]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest())',
    JSON.stringify(plan({ where: 'meta."é" == `1`', batch: { global: 7 } })),
  ])
  t.equal(planIdOf(plan({ batch: { global: 7 }, where: 'meta."é" == `1`' })), python.stdout.toString().trim())
})

t.test('parseCursor takes back what formatCursor gave, and nothing else', async t => {
  const place = { topHash: TOP_HASH, planId: 'cd'.repeat(32), epoch: 7, position: 2 ** 40 }
  const text = formatCursor(place)
  t.same(parseCursor(text, place), place)
  t.ok(text.length <= 256)
  t.throws(() => parseCursor(text, { ...place, planId: '0'.repeat(64) }), { code: 'CURSOR_FOREIGN', message: /plan/ })
  t.throws(() => parseCursor(text, { ...place, topHash: '0'.repeat(64) }), {
    code: 'CURSOR_FOREIGN',
    message: /package/,
  })
  const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  for (let i = 0; i < text.length; i++) {
    const other = letters[(letters.indexOf(text[i]!) + 1 + (i % 62)) % 64]
    t.throws(() => parseCursor(text.slice(0, i) + other + text.slice(i + 1), place), { code: 'INVALID_ARGUMENT' })
  }
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), junk => {
      try {
        parseCursor(junk, place)
        return false
      } catch (error) {
        return (error as { code?: string }).code === 'INVALID_ARGUMENT'
      }
    }),
  )
})

t.test('parseShardName takes back what formatShardName gave', async t => {
  const name = { topHash: 'ab'.repeat(8), plan: 'cd'.repeat(8), epoch: 3, world: 8, rank: 7, shard: 999 }
  t.same(parseShardName(formatShardName(name)), name)
  t.throws(() => parseShardName('../../etc/passwd'), { code: 'INVALID_ARGUMENT' })
})

t.test('stepsPerShard makes a thousand shards, and more rather than larger ones than can be answered', t => {
  t.same(
    [1, 1000, 1001, 5000].map(steps => stepsPerShard(steps, 256)),
    [1, 1, 2, 5],
  )
  t.equal(stepsPerShard(1_562_500, 32), 512)
  for (const batch of [1, 7, 256, 65_536, 100_000, 1_000_000]) {
    for (const samples of [1, 1e6, 1e8, 2 ** 32]) {
      const steps = Math.ceil(samples / batch)
      const perShard = stepsPerShard(steps, batch)
      t.ok(perShard === 1 || perShard * batch <= 16_384, `${samples} in batches of ${batch}`)
      t.ok(Math.ceil(steps / perShard) <= 1e6, 'six digits')
    }
  }
  t.end()
})

async function indexOf(
  t: Test,
  rows: readonly Row[],
): Promise<{ index: PackageIndex; folder: string; topHash: TopHash }> {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-plan-'))
  const [manifestPath, indexPath] = [join(folder, 'manifest'), join(folder, 'index')]
  writeFileSync(manifestPath, manifestText(rows))
  const topHash = topHashOf(rows) as TopHash
  await compileManifest({ manifestPath, indexPath, topHash, registry: { kind: 's3', bucket: 'bucket' } })
  const index = new PackageIndex(indexPath, manifestPath)
  t.teardown(() => {
    index.close()
    rmSync(folder, { recursive: true })
  })
  return { index, folder, topHash }
}

const named = (key: string, user_meta?: unknown) => fileRow(key, user_meta === undefined ? {} : { meta: { user_meta } })

t.test('findSamples puts together what has one stem', async t => {
  t.same(sampleNameOf('7.seg.png'), { stem: '7', suffix: 'seg.png' })
  t.same(sampleNameOf('.hidden'), { stem: '.hidden', suffix: 'bin' })
  t.same(sampleNameOf('.a.b'), { stem: '.a', suffix: 'b' })
  t.same(sampleNameOf('name.'), { stem: 'name.', suffix: 'bin' })
  const keys = [
    'a/1.jpg',
    'a/1.seg.png',
    'a/1/x.jpg',
    'a/1-b.jpg',
    'a/10.jpg',
    'a/README',
    'a/README.md',
    'b/1.jpg',
    '1.jpg',
    'é.jpg',
    'é.txt',
  ]
  const { index } = await indexOf(
    t,
    keys.map(key => named(key)),
  )
  const samplesBy = (body: Omit<PlanBody, 'package'>) =>
    [...findSamples(index, plan(body))].map(({ inos }) => inos.map(ino => index.key(ino)))
  t.same(samplesBy({}), [
    ['1.jpg'],
    ['é.jpg', 'é.txt'],
    ['a/1-b.jpg'],
    ['a/1.jpg', 'a/1.seg.png'],
    ['a/10.jpg'],
    ['a/README'],
    ['a/README.md'],
    ['b/1.jpg'],
    ['a/1/x.jpg'],
  ])
  t.equal(samplesBy({ group: { by: 'entry' } }).length, keys.length)
  t.same(samplesBy({ select: ['a/*.jpg'], exclude: ['**/10.*'] }), [['a/1-b.jpg'], ['a/1.jpg']])
  const refused: [Omit<PlanBody, 'package'>, RegExp][] = [
    [{ select: ['*.mp3'] }, /selects no entry.*mp3/],
    [{ where: 'meta.[' }, /JMESPath/],
    [{ where: 'contains(meta.tags, `1`)' }, /does not fit/],
  ]
  for (const [body, words] of refused) t.throws(() => samplesBy(body), { code: 'INVALID_ARGUMENT', message: words })
  for (const [key, words] of [
    ['x.json', /metadata member.*"meta": null, in Python meta=None/],
    ['x.pad', /protocol/],
    ['x.jpg.error.json', /protocol/],
    [`x.${'y'.repeat(81)}`, /80 bytes/],
  ] as const) {
    const { index: bad } = await indexOf(t, [named(key)])
    t.throws(() => [...findSamples(bad, plan())], { code: 'INVALID_ARGUMENT', message: words }, key)
  }
})

t.test("Selector takes the tutorial's animals", async t => {
  const annotations = (supercategory: string) => ({ annotations: [{ supercategory, bbox: [1, 2, 3, 4] }] })
  const { index } = await indexOf(t, [
    named('1.jpg', annotations('animal')),
    named('2.jpg', annotations('vehicle')),
    named('3.jpg'),
    named('4.png', annotations('animal')),
  ])
  const where = "ends_with(key, '.jpg') && contains(meta.annotations[].supercategory, 'animal')"
  t.same(
    [...findSamples(index, plan({ where }))].map(({ inos }) => index.key(inos[0]!)),
    ['1.jpg'],
  )
  const bySize = [...findSamples(index, plan({ where: "size == `1` && hash.type == 'sha2-256-chunked'" }))]
  t.equal(bySize.length, 4)
})

t.test('SampleTable gives back what buildSampleTable has found, and notices damage', async t => {
  const count = 20_000
  const rows = Array.from({ length: 2 * count }, (_, i) => {
    const key = `part-${i % 50}/${String(i >> 1).padStart(6, '0')}-${i % 50}.${i % 100 < 50 ? 'jpg' : 'txt'}`
    return fileRow(key, { size: (i % 1000) + 1 })
  })
  const { index, folder, topHash } = await indexOf(t, rows)
  const document = plan({ batch: { global: 32 } }, topHash)
  const path = join(folder, 'table')
  const facts = await buildSampleTable(index, document, path)
  const samples = [...findSamples(index, document)]
  t.match(facts, { samples: samples.length, entries: 2 * count })
  const largest = samples.map(({ bytes }) => bytes).sort((a, b) => b - a)
  t.equal(
    facts.maxStepBytes,
    largest.slice(0, 32).reduce((sum, bytes) => sum + bytes, 0),
  )
  const table = new SampleTable(path, planIdOf(document))
  t.ok(samples.every(({ inos }, i) => table.members(i).join() === inos.join()))
  table.close()
  t.throws(() => new SampleTable(path, '0'.repeat(64) as never), { code: 'INDEX_DAMAGED' })
  const bytes = readFileSync(path)
  for (const cut of [0, 10, bytes.length >> 1, bytes.length - 1]) {
    writeFileSync(path, bytes.subarray(0, cut))
    t.throws(() => new SampleTable(path, planIdOf(document)), { code: 'INDEX_DAMAGED' }, `cut at ${cut}`)
  }
})
