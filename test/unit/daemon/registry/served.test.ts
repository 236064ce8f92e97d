import { mkdirSync, realpathSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parsePhysicalKey } from '../../../../daemon/model/index.js'
import { parseRegistry } from '../../../../daemon/registry/reference.js'
import { isWithin, Served } from '../../../../daemon/registry/served.js'

const HASH = '3722a4'.padEnd(64, '0')
const OTHER = '5833b5'.padEnd(64, '0')
const pinned = { registry: 's3://named', package: 'cv/coco', topHash: HASH }

t.test('a door admits the revisions that are named, of that registry, under that name', async t => {
  const served = Served.named([pinned], [])
  t.ok(served.admits(pinned))
  t.notOk(served.admits({ ...pinned, topHash: OTHER }))
  t.notOk(
    served.admits({ ...pinned, registry: 's3://stranger' }),
    'the same revision elsewhere has other physical keys',
  )
  t.notOk(served.admits({ ...pinned, package: 'cv/other' }))
  t.ok(served.mayAsk(pinned))
  t.notOk(served.mayAsk({ ...pinned, package: 'cv/other' }))
  t.notOk(served.mayAsk({ ...pinned, registry: 'file:///home/stranger' }))
  t.notOk(served.isEverything)
})

t.test('a door admits whatever a named registry holds', async t => {
  const served = Served.named([], [parseRegistry('s3://named')])
  t.ok(served.admits({ ...pinned, topHash: OTHER, package: 'any/name' }))
  t.notOk(served.admits({ ...pinned, registry: 's3://named-too' }))
  t.notOk(served.admits({ ...pinned, registry: 'file:///named' }))
})

t.test('the owner has everything, and a door for which nothing is named has nothing', async t => {
  t.ok(Served.everything.admits(pinned))
  t.ok(Served.everything.isEverything)
  t.equal(Served.everything.placesOf(pinned), undefined)
  t.notOk(Served.nothing.admits(pinned))
  t.notOk(Served.nothing.mayAsk(pinned))
  t.notOk(Served.nothing.isEverything)
})

t.test('physical keys that lead out of a named folder are outside, however they are spelt', async t => {
  const folder = t.testdir({ named: {}, secret: 'x' })
  const registry = `file://${join(folder, 'named')}`
  const address = { registry, package: 'cv/coco', topHash: HASH }
  for (const served of [Served.named([address], []), Served.named([], [parseRegistry(registry)])]) {
    const places = served.placesOf(address)!
    const isIn = (text: string) => isWithin(parsePhysicalKey(text), places)
    t.ok(isIn(`${registry}/cv/coco/a.jpg`))
    t.notOk(isIn(`file://${folder}/secret`))
    t.notOk(isIn(`${registry}/../secret`))
    t.notOk(isIn(`${registry}/%2e%2e/secret`))
    t.notOk(isIn(`${registry}-too/a.jpg`))
    t.notOk(isIn(registry), 'the folder itself is no file in it')
    t.notOk(isIn('file:///etc/passwd'))
  }
})

t.test('a folder that is named through a link is the folder behind it, as it was at the start', async t => {
  const folder = realpathSync(t.testdir({ really: {}, secret: {} }))
  symlinkSync(join(folder, 'really'), join(folder, 'named'))
  const registry = `file://${join(folder, 'named')}`
  const address = { registry, package: 'cv/coco', topHash: HASH }
  const { folders } = Served.named([address], []).placesOf(address)!
  t.same(folders, [join(folder, 'named'), join(folder, 'really')])
  const unmade = { ...address, registry: `file://${join(folder, 'unmade')}` }
  const served = Served.named([unmade], [])
  mkdirSync(join(folder, 'unmade'))
  t.same(served.placesOf(unmade)!.folders, [join(folder, 'unmade')])
})

t.test('S3 keys lie in any bucket for a revision that is named by its hash, else in named buckets', async t => {
  const elsewhere = parsePhysicalKey('s3://elsewhere/cv/coco/a.jpg?versionId=1')
  t.ok(isWithin(elsewhere, Served.named([pinned], []).placesOf(pinned)!))
  const whole = Served.named([], [parseRegistry('s3://named')])
  t.notOk(isWithin(elsewhere, whole.placesOf(pinned)!))
  t.ok(isWithin(parsePhysicalKey('s3://named/cv/coco/a.jpg'), whole.placesOf(pinned)!))
  const both = Served.named([], ['s3://named', 's3://elsewhere'].map(parseRegistry))
  t.ok(isWithin(elsewhere, both.placesOf(pinned)!))
  t.notOk(isWithin(parsePhysicalKey('file:///etc/passwd'), both.placesOf(pinned)!))
})

t.test('a package in a folder may have bytes in another folder that is named as a registry', async t => {
  const address = { registry: 'file:///named', package: 'cv/coco', topHash: HASH }
  const served = Served.named([address], [parseRegistry('file:///data')])
  t.ok(isWithin(parsePhysicalKey('file:///data/a.jpg'), served.placesOf(address)!))
  t.notOk(isWithin(parsePhysicalKey('file:///home/a.jpg'), served.placesOf(address)!))
})
