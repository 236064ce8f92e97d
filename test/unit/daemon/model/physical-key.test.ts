import { createHash } from 'node:crypto'
import t from 'tap'
import { formatPhysicalKey, HASH_TYPES, isPackageName, parsePhysicalKey } from '../../../../daemon/model/index.js'
import { vectors } from '../../../support/vectors.js'

t.test('parsePhysicalKey reads every address of the vectors as quilt3 does', async t => {
  for (const { uri, error, bucket, key, versionId, reformatted } of vectors.physical_key_parse) {
    if (error !== undefined) {
      t.throws(() => parsePhysicalKey(uri), { code: 'INVALID_ARGUMENT' }, uri)
      continue
    }
    const parsed = parsePhysicalKey(uri)
    t.same(parsed, { kind: 's3', bucket, key, ...(versionId === null ? {} : { versionId }) }, uri)
    t.equal(formatPhysicalKey(parsed), reformatted, uri)
  }
})

t.test('formatPhysicalKey writes every address of the vectors as quilt3 does', async t => {
  for (const { bucket, key, versionId, uri } of vectors.physical_key_format) {
    const physicalKey = { kind: 's3' as const, bucket, key, ...(versionId === null ? {} : { versionId }) }
    t.equal(formatPhysicalKey(physicalKey), uri)
    t.same(parsePhysicalKey(uri), physicalKey)
  }
})

t.test('parsePhysicalKey reads local addresses and refuses those of other machines', async t => {
  t.same(parsePhysicalKey('file:///a%20b/%C3%A9+'), { kind: 'file', path: '/a b/é+' })
  t.same(parsePhysicalKey('file://localhost/a'), { kind: 'file', path: '/a' })
  t.same(parsePhysicalKey('file:///100%'), { kind: 'file', path: '/100%' })
  for (const uri of ['file://host/a', 'file://a', 'file:///a?x', 'file:///a#x', 'http://a/b', '/a', '']) {
    t.throws(() => parsePhysicalKey(uri), { code: 'INVALID_ARGUMENT' }, uri)
  }
  t.equal(formatPhysicalKey({ kind: 'file', path: '/a b/é#?' }), 'file:///a%20b/%C3%A9%23%3F')
})

t.test('isPackageName follows the vectors', async t => {
  for (const { name, accepted } of vectors.package_names) t.equal(isPackageName(name), accepted, JSON.stringify(name))
})

t.test("formatPhysicalKey spells addresses as quilt3's cache names them", async t => {
  for (const { url, sha256_hex, object_cache_relpath } of vectors.cache_paths) {
    const name = createHash('sha256')
      .update(formatPhysicalKey(parsePhysicalKey(url)))
      .digest('hex')
    t.equal(name, sha256_hex)
    t.equal(`${name.slice(0, 2)}/${name.slice(2)}`, object_cache_relpath)
  }
})

t.test('HASH_TYPES are the types that quilt knows', async t => {
  t.strictSame([...HASH_TYPES].sort(), Object.keys(vectors.multihash_codes).sort())
})
