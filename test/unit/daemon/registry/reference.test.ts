import { join } from 'node:path'
import t from 'tap'
import { BobbinError } from '../../../../daemon/model/index.js'
import {
  formatReference,
  formatRegistry,
  parseReference,
  parseRegistry,
  type ReferenceOptions,
} from '../../../../daemon/registry/reference.js'

const HASH = '3722a4'.padEnd(64, '0')
const BUCKET = { kind: 's3', bucket: 'bucket' }

function messageOf(text: string, options?: ReferenceOptions): string {
  try {
    parseReference(text, options)
  } catch (error) {
    if (error instanceof BobbinError && error.code === 'INVALID_ARGUMENT') return error.message
    throw error
  }
  return 'it parsed'
}

t.test('parseReference reads every form of the command line', async t => {
  const latest = { registry: BUCKET, name: 'cv/coco', revision: { kind: 'latest' } }
  const byPrefix = { ...latest, revision: { kind: 'hash', prefix: '3722a4' } }
  const byNumber = { ...latest, revision: { kind: 'tag', tag: '1700000000' } }
  t.same(parseReference('s3://bucket/cv/coco'), latest)
  t.same(parseReference('s3://bucket/cv/coco:latest'), latest)
  t.same(parseReference('s3://bucket/cv/coco@3722a4'), byPrefix)
  t.same(parseReference(`s3://bucket/cv/coco@${HASH}`), { ...latest, revision: { kind: 'hash', prefix: HASH } })
  t.same(parseReference('s3://bucket/cv/coco:1700000000'), byNumber)
  t.same(parseReference('s3://bucket/cv/coco:v1.2'), { ...latest, revision: { kind: 'tag', tag: 'v1.2' } })
  t.same(parseReference('quilt+s3://bucket#package=cv/coco'), latest)
  t.same(parseReference('quilt+s3://bucket#package=cv/coco@3722a4'), byPrefix)
  t.same(parseReference('quilt+s3://bucket#package=cv/coco:1700000000'), byNumber)
  t.same(parseReference('cv/coco@3722a4', { registry: 's3://bucket' }), byPrefix)
  t.same(parseReference('cv/coco', { registry: 's3://bucket', topHash: '3722a4' }), byPrefix)
  t.same(parseReference('cv/coco', { defaultRegistry: 's3://bucket/' }), latest)
})

t.test('parseReference reads registries in folders', async t => {
  const inFolder = (path: string, prefix: string) => ({
    registry: { kind: 'file', path },
    name: 'cv/coco',
    revision: { kind: 'hash', prefix },
  })
  t.same(parseReference('file:///data/reg/cv/coco@3722a4'), inFolder('/data/reg', '3722a4'))
  t.same(parseReference('file:///a%20b/cv/coco@3722a4'), inFolder('/a b', '3722a4'))
  t.same(parseReference('/data/reg/cv/coco@3722a4'), inFolder('/data/reg', '3722a4'))
  t.same(parseReference('/cv/coco@3722a4'), inFolder('/', '3722a4'))
  t.same(parseReference('./reg/cv/coco@3722a4'), inFolder(join(process.cwd(), 'reg'), '3722a4'))
  t.same(parseReference('../cv/coco@3722a4'), inFolder(join(process.cwd(), '..'), '3722a4'))
  t.same(parseReference('/odd@name:x/cv/coco@3722a4'), inFolder('/odd@name:x', '3722a4'))
  t.same(parseReference('cv/coco@3722a4', { registry: './reg' }), inFolder(join(process.cwd(), 'reg'), '3722a4'))
})

t.test('parseReference keeps the path of a Quilt+ URI and ignores its other fields', async t => {
  const { path } = parseReference(
    'quilt+s3://bucket#package=cv/coco@3722a4&path=a%20b/c%252F+d&catalog=x.org&workflow=w',
  )
  t.equal(path, 'a b/c%2F d')
  t.equal(parseReference('quilt+s3://bucket#package=cv%2Fcoco').name, 'cv/coco')
  t.notOk('path' in parseReference('quilt+s3://bucket#package=cv/coco&path='))
})

t.test('parseReference takes the same registry or hash said twice', async t => {
  const twice = parseReference('s3://bucket/cv/coco@3722a4', { registry: 's3://bucket/', topHash: '3722a4' })
  t.same(twice.revision, { kind: 'hash', prefix: '3722a4' })
  t.same(parseReference('s3://bucket/cv/coco', { defaultRegistry: 's3://other' }).registry, BUCKET)
})

t.test('parseReference explains what is wrong', async t => {
  const cases: readonly [string, RegExp, ReferenceOptions?][] = [
    ['cv/coco', /no registry .*--registry .*BOBBIN_REGISTRY/],
    ['s3://bucket', /no package/],
    ['s3://bucket/coco', /not a package name/],
    ['s3://bucket/a/cv/coco', /two parts/],
    ['s3:///cv/coco', /bucket/],
    ['s3://bucket/cv/coco@3722a', /at least 6/],
    ['s3://bucket/cv/coco@', /at least 6/],
    [`s3://bucket/cv/coco@${HASH}0`, /65 characters/],
    ['s3://bucket/cv/coco@3722A4', /lower-case, try 3722a4/],
    ['s3://bucket/cv/coco@zebras', /not a top hash/],
    ['s3://bucket/cv/coco@3722a4@3722a4', /not a top hash/],
    ['s3://bucket/cv/coco@3722a4:latest', /not a top hash/],
    ['s3://bucket/cv/coco:', /not a tag/],
    ['s3://bucket/cv/coco:a:b', /not a tag/],
    ['s3://bucket/cv/coco:../../x', /not a tag/],
    ['s3://bucket/cv/coco:..', /not a tag/],
    ['s3://bucket/%zz/coco', /%/],
    ['file:///coco', /no package/],
    ['file://host/reg/cv/coco', /local/],
    ['./coco', /not a package name|no package/],
    ['quilt+s3://bucket', /#package=/],
    ['quilt+s3://bucket#path=a', /no "package="/],
    ['quilt+s3://bucket/x#package=cv/coco', /whole bucket/],
    ['quilt+s3://bucket#package=cv/coco&package=cv/coco', /several "package="/],
    ['quilt+s3://bucket#package=cv/coco@3722a4:1', /not a top hash/],
    ['s3://bucket/cv/coco', /two registries: s3:\/\/bucket .*s3:\/\/other/, { registry: 's3://other' }],
    ['s3://bucket/cv/coco@3722a4', /two revisions/, { topHash: '3722a5' }],
    ['s3://bucket/cv/coco:latest', /two revisions/, { topHash: '3722a5' }],
    ['cv/coco', /at least 6/, { registry: 's3://bucket', topHash: '37' }],
    ['', /not a package name/],
  ]
  for (const [text, message, options] of cases) t.match(messageOf(text, options), message, text)
})

t.test('parseRegistry reads buckets and folders, and formatRegistry writes them', async t => {
  t.same(parseRegistry('s3://bucket/'), BUCKET)
  t.same(parseRegistry('quilt+s3://bucket#package=a/b'), BUCKET)
  t.same(parseRegistry('file:///a%20b/'), { kind: 'file', path: '/a b' })
  t.same(parseRegistry('.'), { kind: 'file', path: process.cwd() })
  t.equal(formatRegistry(parseRegistry('/a b/../c d/')), 'file:///c%20d')
  t.equal(formatRegistry(parseRegistry('s3://B.x')), 's3://B.x')
  for (const text of ['', 'bucket', 's3://', 's3://a b', 's3://a/b', 's3://a?x', 'http://a']) {
    t.throws(() => parseRegistry(text), { code: 'INVALID_ARGUMENT' }, text)
  }
})

t.test('formatReference writes what parseReference reads', async t => {
  for (const text of ['s3://b/n/p', 's3://b/n/p@3722a4', 's3://b/n/p:17', 'file:///a%20b/n/p@3722a4']) {
    t.equal(formatReference(parseReference(text)), text)
  }
})

t.test('the ARN of an access point stands for a bucket (S186)', async t => {
  const arn = 'arn:aws:s3:eu-west-1:123456789012:accesspoint:shared'
  const registry = { kind: 's3', bucket: arn }
  const revision = { kind: 'tag', tag: 'v1' }
  t.same(parseReference(`s3://${arn}/cv/coco:v1`), { registry, name: 'cv/coco', revision })
  t.same(parseRegistry(`s3://${arn}/`), registry)
  t.equal(formatRegistry(parseRegistry(`s3://${arn}`)), `s3://${arn}`)
  t.same(parseReference(`quilt+s3://${arn}#package=cv/coco:v1`), { registry, name: 'cv/coco', revision })
  const slash = 's3://arn:aws:s3:eu-west-1:123456789012:accesspoint/shared/cv/coco'
  t.match(messageOf(slash), /an access point's name follows a colon, as for quilt3: s3:\/\/arn:…:accesspoint:NAME/)
  t.match(messageOf('s3://arn:aws:sqs:eu-west-1:123456789012:queue/cv/coco'), /not a bucket's name/)
})
