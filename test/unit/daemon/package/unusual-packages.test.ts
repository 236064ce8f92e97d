/** Metadata and keys that quilt3 does not write today, or only by accident, mean what they mean to quilt3. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { directoryMetas } from '../../../../daemon/folder/push/push-edited.js'
import { parseUserMeta } from '../../../../daemon/manifest/manifest-writer.js'
import { isTopHash, keyBytes, keyText, parsePackageName } from '../../../../daemon/model/index.js'
import { type OpenedPackage, openPackage } from '../../../../daemon/package/package-cache.js'
import { diffPackages, isSamePackageMetadata } from '../../../../daemon/package/package-diff.js'
import { createSource } from '../../../../daemon/source/index.js'
import { Bobbin } from '../../../support/cli.js'
import {
  DIFF_TABLE,
  DIRECTORY_META_TABLE,
  directoryRow,
  ENTRY_META_TABLE,
  entryRow,
  LONE_SURROGATES,
  LONE_SURROGATES_TOP_HASH,
  loneSurrogateRows,
  manifestOf,
  PACKAGE_META_TABLE,
} from '../../../support/package-table.js'

const WRONG = '0'.repeat(64)

/** Opens packages of a registry in a folder, from the text of their manifests. */
function registry(t: Test) {
  const folder = t.testdir()
  const source = createSource({ ioTimeoutMs: 30_000, offline: false })
  t.teardown(() => source.close())
  const manifests = join(folder, 'registry/.quilt/packages')
  mkdirSync(manifests, { recursive: true })
  const openAs = async (hash: string, quarantine = false) =>
    openPackage(
      {
        registry: { kind: 'file', path: join(folder, 'registry') },
        name: parsePackageName('un/usual'),
        revision: { kind: 'hash', prefix: hash },
      },
      { cacheDir: join(folder, 'cache'), source, quarantine },
    )
  /** Says what the manifest hashes to: it is written under another hash first. */
  const write = async (text: string): Promise<string> => {
    writeFileSync(join(manifests, WRONG), text)
    const { message } = await openAs(WRONG, true).then(
      () => new Error('it was opened'),
      (error: Error) => error,
    )
    const found = /hashes to ([0-9a-f]{64})/.exec(message)?.[1] ?? message
    if (isTopHash(found)) writeFileSync(join(manifests, found), text)
    return found
  }
  const open = async (text: string): Promise<OpenedPackage> => {
    const opened = await openAs(await write(text))
    t.teardown(() => opened.close())
    return opened
  }
  return { folder, open, openAs, write }
}

t.test('diff compares the whole metadata of entries as quilt3 does (S190)', async t => {
  const { folder, open } = registry(t)
  const before = await open(manifestOf(DIFF_TABLE.map(([text], i) => entryRow(`"${i}"`, text))))
  const after = await open(manifestOf(DIFF_TABLE.map(([, text], i) => entryRow(`"${i}"`, text))))
  const found = new Set<string>()
  for await (const { change, entry } of diffPackages(before, after)) {
    t.equal(change, 'metadata')
    found.add(entry.key)
  }
  for (const [i, [old, now, differs]] of DIFF_TABLE.entries())
    t.equal(found.has(String(i)), differs, `${old} and ${now}`)
  const bobbin = new Bobbin(join(folder, 'cache'), { BOBBIN_CONFIG: undefined, HOME: folder, XDG_CONFIG_HOME: folder })
  const [a, b] = [before, after].map(({ topHash }) => `${folder}/registry/un/usual@${topHash}`) as [string, string]
  const total = (await bobbin.rows<{ change: string }>('diff', a, b)).at(-1)
  t.match(total, { change: 'total', added: 0, removed: 0, changed: 0, metadata: found.size, packageMetadata: false })
})

t.test('metadata is shown as quilt3 gives it, absent or not an object (S191)', async t => {
  const { open } = registry(t)
  const packages = []
  for (const [member, meta] of PACKAGE_META_TABLE) {
    const opened = await open(manifestOf([entryRow('"a"', '{}')], member))
    packages.push(opened)
    t.equal(opened.index.packageMetadata(), meta, member)
  }
  t.notOk(isSamePackageMetadata(packages[0]!.index, packages[1]!.index), 'absent and null')
  t.ok(isSamePackageMetadata(packages[0]!.index, packages[2]!.index), 'absent and {}')
  const entries = await open(manifestOf(ENTRY_META_TABLE.map(([meta], i) => entryRow(`"${i}"`, meta))))
  for (const [i, [meta, userMeta]] of ENTRY_META_TABLE.entries()) {
    const { index } = entries
    t.equal(index.metadata(index.find(String(i))!.ino) ?? '{}', userMeta, meta)
  }
  const directories = await open(
    manifestOf([
      ...DIRECTORY_META_TABLE.map(([meta], i) => directoryRow(`"${i}/"`, meta)),
      ...DIRECTORY_META_TABLE.map((_, i) => entryRow(`"${i}/a"`, '{}')),
    ]),
  )
  const written = new Map(directoryMetas(directories))
  for (const [i, [meta, isWritten]] of DIRECTORY_META_TABLE.entries()) {
    const { index } = directories
    t.equal(index.metadata(index.find(String(i))!.ino) ?? '{}', meta)
    t.equal(written.has(String(i)), isWritten, `${meta} in the next revision`)
  }
})

t.test('keys with lone surrogates have their place in the top hash, and are left out (S192)', async t => {
  const { write, openAs } = registry(t)
  t.equal(await write(manifestOf(loneSurrogateRows())), LONE_SURROGATES_TOP_HASH)
  await t.rejects(openAs(LONE_SURROGATES_TOP_HASH), { code: 'PACKAGE_REFUSED', message: /lone surrogate/ })
  const opened = await openAs(LONE_SURROGATES_TOP_HASH, true)
  t.teardown(() => opened.close())
  const keys = LONE_SURROGATES.map(text => JSON.parse(text) as string)
  t.strictSame(
    [...opened.index.entries()].map(({ key }) => key),
    keys.filter(key => key.isWellFormed()),
  )
  const left = opened.index.quarantined().map(({ key }) => key)
  t.strictSame(left.sort(), keys.filter(key => !key.isWellFormed()).sort())
  for (const key of keys) t.equal(keyText(keyBytes(key)), key)
  t.ok(keys.every((key, i) => i === 0 || Buffer.compare(keyBytes(keys[i - 1]!), keyBytes(key)) < 0))
})

t.test('metadata with a lone surrogate, which quilt3 cannot write, is refused (S192)', async t => {
  const refused = { code: 'INVALID_ARGUMENT', message: /"\\ud800" has half of a surrogate pair/ }
  for (const text of ['{"a":"\\ud800"}', '{"\\ud800":1}', '{"a":[{"b":["\\ud800"]}]}'])
    t.throws(() => parseUserMeta(text), refused, text)
  t.equal(parseUserMeta('{"a":"\\ud83d\\ude00"}'), '{"a":"\\ud83d\\ude00"}')
})
