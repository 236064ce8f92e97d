import t from 'tap'
import { HASH_TYPES, hasCode, parseTopHash } from '../../../../daemon/model/index.js'
import {
  chunkBytes,
  chunkCount,
  combineChunkDigests,
  createObjectHasher,
  formatManifestHash,
} from '../../../../daemon/model/object-hash.js'
import { type ObjectHashVector, vectors } from '../../../support/vectors.js'

function bytesOf({ generator }: ObjectHashVector): Buffer {
  const unit = Buffer.from(generator.repeat_hex, 'hex')
  const body = generator.count === 0 ? Buffer.alloc(0) : Buffer.alloc(unit.length * generator.count, unit)
  return Buffer.concat([body, Buffer.from(generator.tail_hex, 'hex')])
}

for (const vector of vectors.object_hashes) {
  t.test(`createObjectHasher gives the hashes of the vector ${vector.name}`, async t => {
    const bytes = bytesOf(vector)
    t.equal(bytes.length, vector.size)
    for (const type of HASH_TYPES) {
      for (const step of [bytes.length + 1, 65_536 + 1]) {
        const hasher = await createObjectHasher(type, vector.size)
        for (let at = 0; at < bytes.length; at += step) hasher.update(bytes.subarray(at, at + step))
        const hex = hasher.digest()
        t.equal(formatManifestHash({ type, hex }), vector[type], `${type} in steps of ${step}`)
      }
    }
  })

  t.test(`combineChunkDigests gives the chunked hash of ${vector.name} from its parts`, async t => {
    const digests = vector.part_sha256_hex.map(hex => Buffer.from(hex, 'hex'))
    t.equal(chunkCount(vector.size), digests.length)
    t.equal(combineChunkDigests(digests), vector['sha2-256-chunked_hex'])
  })
}

t.test('chunkBytes and chunkCount follow the chunk size rule', async t => {
  for (const { size, chunk_size, parts } of vectors.chunk_size_rule) {
    t.equal(chunkBytes(size), chunk_size, `${size} bytes`)
    t.equal(chunkCount(size), parts, `${size} bytes`)
  }
})

t.test('combineChunkDigests turns the SHA-256 of a single PUT into the chunked hash', async t => {
  for (const vector of vectors.s3_single_put_to_chunked) {
    const isEmpty = vector.content_utf8 === ''
    const digests = isEmpty ? [] : [Buffer.from(vector.s3_ChecksumSHA256, 'base64')]
    t.equal(
      formatManifestHash({ type: 'sha2-256-chunked', hex: combineChunkDigests(digests) }),
      vector['sha2-256-chunked'],
    )
  }
})

t.test('createObjectHasher passes the check of CRC-64/NVME', async t => {
  const hasher = await createObjectHasher('CRC64NVME', 9)
  hasher.update(Buffer.from('123456789'))
  t.equal(hasher.digest(), vectors.crc64nvme.check_123456789)
})

t.test('parseTopHash takes 64 lower-case hex characters and nothing else', async t => {
  t.equal(parseTopHash('0a'.repeat(32)), '0a'.repeat(32))
  for (const text of ['', '0a', '0A'.repeat(32), `${'0a'.repeat(32)}\n`, 'zz'.repeat(32)]) {
    try {
      parseTopHash(text)
      t.fail(`took ${JSON.stringify(text)}`)
    } catch (error) {
      t.ok(hasCode(error, 'INVALID_ARGUMENT'))
    }
  }
})
