/** Numbers of Python's JSON that are no JSON, in a package as quilt3 5.4.0 and older wrote it, through every client. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parsePythonJson, standardJson } from '../../daemon/json/python-json.js'
import { LoaderClient, type Transport } from '../../loader/client/index.js'
import { python, testFolder } from '../support/daemon.js'
import { startLoader } from '../support/loader.js'
import { repository } from '../support/parts.js'

t.setTimeout(300_000)

/** Writes a registry with quilt3's own means, Python's json and hashlib; the last line is the top hash. */
const WRITE = `
import hashlib, json, os, sys
registry = sys.argv[1]
nan, inf = float('nan'), float('inf')
scores = {'a.txt': 0.25, 'b.txt': nan, 'c.txt': inf, 'd.txt': -inf, 'e.txt': 'NaN', 'f.txt': 9007199254740993}
header = {'version': 'v0', 'user_meta': {'mean': nan}, 'message': None}
canonical = lambda value: json.dumps(value, sort_keys=True, separators=(',', ':'))
digest, lines = hashlib.sha256(canonical(header).encode()), [json.dumps(header)]
os.makedirs(registry + '/.quilt/packages'); os.makedirs(registry + '/.quilt/named_packages/old/nan'); os.makedirs(registry + '/o')
for key, score in scores.items():
    open(registry + '/o/' + key, 'w').write(key)
    hashed = {'type': 'SHA256', 'value': hashlib.sha256(key.encode()).hexdigest()}
    if key == 'b.txt': hashed['x'] = nan
    row = {'logical_key': key, 'size': len(key), 'hash': hashed, 'meta': {'user_meta': {'score': score, 'word': 'a "NaN", NaN'}}}
    digest.update(canonical(row).encode())
    lines.append(json.dumps({**row, 'physical_keys': ['file://' + registry + '/o/' + key]}))
top = digest.hexdigest()
open(registry + '/.quilt/packages/' + top, 'w').write('\\n'.join(lines) + '\\n')
open(registry + '/.quilt/named_packages/old/nan/latest', 'w').write(top)
open(registry + '/.quilt/named_packages/old/nan/1500000000', 'w').write(top)
print(json.dumps(top))
`
const folder = testFolder(t)
const registry = join(folder, 'registry')
const topHash = await python<string>(WRITE, registry)
const reference = `${registry}/old/nan@${topHash}`
const loader = await startLoader(t)
const address = `unix:${loader.socket}`
/** As they are sent and printed. */
const SCORES: Readonly<Record<string, unknown>> = {
  'a.txt': 0.25,
  'b.txt': 'NaN',
  'c.txt': 'Infinity',
  'd.txt': '-Infinity',
  'e.txt': 'NaN',
  'f.txt': 9007199254740992,
}
const WHERES: readonly (readonly [string, readonly string[]])[] = [
  ['meta.score != `7`', ['a.txt', 'b.txt', 'c.txt', 'd.txt', 'e.txt', 'f.txt']],
  ['meta.score > `0.5`', ['c.txt', 'f.txt']],
  ['meta.score < `0.5`', ['a.txt', 'd.txt']],
  ['meta.score != meta.score', ['b.txt']],
  ["meta.score == 'NaN'", ['e.txt']],
]

t.test('values keep what they are, and text becomes JSON (S141)', async t => {
  t.strictSame(parsePythonJson('[NaN,"NaN","NaN?",-Infinity,{"a":Infinity,"a":1}]'), [
    Number.NaN,
    'NaN',
    'NaN?',
    -Infinity,
    { a: 1 },
  ])
  t.equal(standardJson('{"a": 1.0, "b": 9007199254740993}'), '{"a": 1.0, "b": 9007199254740993}', 'as it was')
  t.equal(standardJson('{"a": NaN, "b": [1.0, -Infinity, "x\\"NaN"]}'), '{"a":"NaN","b":[1.0,"-Infinity","x\\"NaN"]}')
  t.equal(standardJson('[1e999, -1e400]'), '["Infinity","-Infinity"]', 'what Python reads as infinite')
  t.equal(standardJson(`[${'9'.repeat(400)}]`), `[${'9'.repeat(400)}]`, 'an integer is none, however long')
  t.ok(Object.hasOwn(parsePythonJson('{"__proto__": NaN}') as object, '__proto__'))
  for (const text of ['{', '[nan]', '[NaN,]', '"\n"', '-NaN']) {
    t.throws(() => parsePythonJson(text), text)
    t.throws(() => standardJson(text), text)
  }
})

t.test('the command line prints JSON, and leaves out no entry (S141)', async t => {
  const { cli } = loader
  t.match(await cli.json('resolve', reference), { topHash, metadata: { mean: 'NaN' } })
  const rows = await cli.rows<{ key: string; meta: { score: unknown } }>('ls', reference)
  t.strictSame(Object.fromEntries(rows.map(row => [row.key, row.meta.score])), SCORES)
  t.match(await cli.text('meta', reference, 'b.txt'), /"score": ?NaN/, 'as the manifest has it')
  t.match(await cli.json('meta', reference, 'b.txt'), { score: 'NaN' })
  t.match(await cli.json('meta', reference), { mean: 'NaN' })
  for (const [where, keys] of WHERES) {
    const to = join(folder, `subset-${WHERES.findIndex(([text]) => text === where)}`)
    await cli.text('filter', reference, '--where', where, '--push', `${to}/sub/set`, '-m', 'm')
    const found = await cli.rows<{ key: string }>('ls', `${to}/sub/set`)
    t.strictSame(
      found.map(row => row.key),
      keys,
      where,
    )
    t.equal(readdirSync(join(to, '.quilt/packages')).length, 1)
  }
})

t.test('plans and both clients have every sample, and the same metadata (S141)', async t => {
  const client = new LoaderClient(address)
  t.teardown(() => client.close())
  for (const [where, keys] of WHERES) {
    const { samples } = (await client.createPlan({ package: reference, where, batch: { global: 1 } })).facts
    t.equal(samples, keys.length, where)
  }
  const plan = await client.createPlan({ package: reference, batch: { global: 4 } })
  const read = async (transport: Transport) => {
    const scores: Record<string, unknown> = {}
    for await (const { samples } of plan.batches({ transport }))
      for (const { keys, meta } of samples) scores[keys.get('txt')!] = (meta.txt as { score: unknown }).score
    return scores
  }
  t.strictSame(sorted(await read('paths')), SCORES)
  t.strictSame(sorted(await read('tar')), SCORES)
  const script = `
import json, sys
sys.path.insert(0, sys.argv[1])
from bobbin_loader import Plan
plan = Plan.create(sys.argv[3], global_batch=4, sidecar=sys.argv[2])
print(json.dumps([{k: s.meta['txt']['score'] for b in plan.batches(transport=how) for s in b.samples for k in s.logical_keys.values()} for how in ('paths', 'tar')], allow_nan=False))
`
  const python3 = await python<Record<string, unknown>[]>(
    script,
    join(repository, 'loader/python/src'),
    address,
    reference,
  )
  for (const scores of python3) t.strictSame(sorted(scores), SCORES)
})

function sorted(scores: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(scores).sort(([a], [b]) => (a < b ? -1 : 1)))
}
