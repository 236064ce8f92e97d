import fc from 'fast-check'
import t from 'tap'
import { canonicalJson, compareCodePoints } from '../../../../daemon/json/canonical-json.js'
import { JsonSyntaxError } from '../../../../daemon/json/json-bytes.js'
import { vectors } from '../../../support/vectors.js'

const canonical = (text: string) => {
  const bytes = Buffer.from(text)
  return canonicalJson(bytes, 0, bytes.length)
}

t.test("canonicalJson equals quilt3's canonical form for every vector", async t => {
  t.ok(vectors.canonical_json.length > 40)
  for (const { json_in, canonical: expected } of vectors.canonical_json) t.equal(canonical(json_in), expected, json_in)
})

t.test('canonicalJson of header and rows is the string that quilt3 hashes', async t => {
  for (const { name, manifest, hashed_string } of vectors.top_hash_cases) {
    if (hashed_string === undefined) continue
    const header = Buffer.from(manifest.slice(0, manifest.indexOf('\n')))
    const canonicalHeader = canonicalJson(header, 0, header.length, { without: 'top_hash' })
    t.ok(hashed_string.startsWith(canonicalHeader), name)
  }
})

t.test('canonicalJson does not depend on layout or key order, and is its own canonical form', async t => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 4 }), value => {
      const compact = canonical(JSON.stringify(value))
      return compact === canonical(JSON.stringify(value, null, 3)) && compact === canonical(compact)
    }),
  )
  t.equal(canonical('{"b":1,"a":2,"b":3}'), '{"a":2,"b":3}', 'the last of repeated keys wins')
  t.equal(canonical('{"a":1,"a":2}'), '{"a":2}')
})

t.test('canonicalJson refuses what Python refuses', async t => {
  for (const text of [
    '',
    '{',
    '{"a"}',
    '{"a":1,}',
    '[1,]',
    '[1 2]',
    '01',
    '1.',
    '.5',
    '+1',
    '1e',
    'nul',
    'True',
    "'a'",
    '"\\x"',
    '"\\u12g4"',
    '"a',
    '"\n"',
    '{a:1}',
    '1 2',
    '"\t"',
  ]) {
    t.throws(() => canonical(text), JsonSyntaxError, JSON.stringify(text))
  }
  t.throws(() => canonical('['.repeat(100_000)), JsonSyntaxError, 'deep nesting is an error, not a crash')
  t.throws(() => canonical('9'.repeat(4301)), JsonSyntaxError, 'integers of over 4300 digits')
})

t.test('compareCodePoints orders as UTF-8 bytes do', async t => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), (a, b) => {
      return Math.sign(compareCodePoints(a, b)) === Math.sign(Buffer.compare(Buffer.from(a), Buffer.from(b)))
    }),
  )
  t.ok(compareCodePoints('\ue000', '😀') < 0)
})
