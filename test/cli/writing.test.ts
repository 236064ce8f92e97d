/** Metadata, edits, copies and deletions with a registry in a folder: what is refused, and what is left alone. */
import { chownSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { Bobbin } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'

interface Revision {
  readonly topHash: string
  readonly entries: number
  readonly message: string | null
}

function fixture(t: Test) {
  const folder = testFolder(t)
  const at = (name: string, text: string) => {
    const path = join(folder, name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, text)
    return path
  }
  for (const key of ['images/1.jpg', 'masks/1.jpg', 'c']) at(`source/${key}`, key)
  const bobbin = new Bobbin(join(folder, 'cache'), { BOBBIN_CONFIG: undefined, HOME: folder, XDG_CONFIG_HOME: folder })
  const dir = join(folder, 'source')
  const target = `${folder}/registry/me/pkg`
  const push = (...args: string[]) => bobbin.try('push', dir, target, ...args)
  return { folder, at, bobbin, dir, target, push }
}

t.test('metadata that does not fit is an error that names it, and nothing is written (S150)', async t => {
  const { at, bobbin, target, push } = fixture(t)
  const coco = (name: string) => at(name, '{"images":[{"id":1,"file_name":"1.jpg"}],"annotations":[],"categories":[]}')
  const refused: [string[], RegExp][] = [
    [['--meta-from', at('a.jsonl', '{"key":"nope"}')], /not in the package: "nope" \(--allow-unmatched/],
    [['--meta-from', at('b.jsonl', '{"key":"c"}\n{"key":"c","a":1}')], /"c" has metadata twice/],
    [['--meta-from', at('c.jsonl', '\n{"key":"c","a":NaN}')], /c\.jsonl, line 2: the metadata is not JSON/],
    [['--meta-from', at('d.jsonl', '{"kee":"c"}')], /line 1: no text member "key"/],
    [['--meta-from', at('e.csv', 'name,a\nc,1')], /no column "key" or "logical_key"/],
    [['--meta-from', at('f.csv', 'key,a\nc,1,2')], /f\.csv is not CSV/],
    [['--meta-from', at('g.csv', 'key,a:json\nc,01')], /line 2: the metadata is not JSON/],
    [['--meta-from', at('h.json', '{"images":[{"id":1}]}')], /h\.json: no list "categories"/],
    [['--meta-from', at('i.json', '[1')], /i\.json: /],
    [['--meta-from', coco('j.json')], /"images\/1\.jpg" and "masks\/1\.jpg" both end with .*--meta-under/],
    [['--meta-from', at('k.txt', '')], /follows from its ending/],
    [['--dir-meta', 'nope={}'], /a folder that the package does not have: "nope"/],
    [['--dir-meta', 'images'], /write it as --dir-meta FOLDER=JSON/],
    [['--meta-under', 'images'], /--meta-from/],
  ]
  for (const [args, message] of refused) {
    const outcome = await push(...args)
    t.match(outcome, { status: 2, stdout: '' }, args.join(' '))
    t.match(outcome.stderr, message)
  }
  t.match(await bobbin.try('resolve', target), { status: 10 })
  const under = await push('--meta-from', coco('l.json'), '--meta-under', 'images/', '--json')
  t.equal(under.status, 0, under.stderr)
  t.equal((await bobbin.text('meta', target, 'images/1.jpg')).trim(), '{"annotations":[]}')
  t.equal((await bobbin.text('meta', target, 'masks/1.jpg')).trim(), '{}')
  t.match(
    await push('--force', '--meta-from', at('m.jsonl', '{"key":"nope"}\n{"key":"c","z":1.0}'), '--allow-unmatched'),
    {
      status: 0,
    },
  )
  t.equal((await bobbin.text('meta', target, 'c')).trim(), '{"z":1.0}')
})

t.test('a message may be left out or empty, and an empty folder is a package (S150)', async t => {
  const { folder, bobbin, dir, target } = fixture(t)
  t.equal((await bobbin.json<Revision>('push', dir, target)).message, null)
  t.equal((await bobbin.json<Revision>('push', dir, target, '-m', '', '--force')).message, '')
  mkdirSync(join(folder, 'empty/of/files'), { recursive: true })
  const { entries, topHash } = await bobbin.json<Revision>('push', join(folder, 'empty'), `${folder}/registry/me/empty`)
  t.equal(entries, 0)
  t.equal((await bobbin.json<Revision>('resolve', `${folder}/registry/me/empty`)).topHash, topHash)
  await bobbin.text('install', `${folder}/registry/me/empty`, join(folder, 'installed'))
})

t.test('an edit that cannot be made is refused (S151)', async t => {
  const { at, bobbin, target, push } = fixture(t)
  await push('-m', 'first', '--dir-meta', 'images={"a":1}', '--dir-meta', 'masks={"b":1}')
  const edit = (...args: string[]) => bobbin.try('edit', target, '--push', ...args)
  t.match(await edit(), { status: 2, stderr: /nothing to change/ })
  t.match(await edit('--remove', 'nope/*'), { status: 10, stderr: /matches --remove nope/ })
  t.match(await edit('--add', 'no-file'), { status: 2, stderr: /--add KEY=FILE/ })
  t.match(await edit('--add', `images=${at('x', 'x')}`), { status: 2, stderr: /an entry and a folder/ })
  t.match(await edit('--add', `c/d=${at('x', 'x')}`), { status: 2, stderr: /an entry and a folder/ })
  t.match(await edit('--add', `../c=${at('x', 'x')}`), { status: 2 })
  t.match(await bobbin.try('meta', 'set', target, 'nope={}'), { status: 10 })
  t.match(await bobbin.try('meta', 'set', target), { status: 2, stderr: /nothing to set/ })
  const removed = await edit('--remove', 'masks', '-m', 'without masks')
  t.equal(removed.status, 0, removed.stderr)
  t.match((await bobbin.text('ls', '-R', target)).trim().split('\n'), ['images/1.jpg', 'c'].sort())
  t.equal((await bobbin.text('meta', target, 'images/')).trim(), '{"a":1}')
})

t.test('a package in layout 2 of a registry is said to be one (S193)', async t => {
  const { at, bobbin, folder, target, push } = fixture(t)
  at('registry/.quilt/v2/tags/me@pkg/latest', '1'.repeat(64))
  const words =
    /layout 2 of a registry \(\.quilt\/v2\).*default_registry_version: 2, and push it to a registry of layout 1/
  for (const verb of ['resolve', 'log', 'ls'])
    t.match(await bobbin.try(verb, target), { status: 10, stderr: words }, verb)
  t.match(await bobbin.try('packages', join(folder, 'registry')), { status: 10, stderr: words })
  t.match(await bobbin.try('resolve', `${folder}/registry/me/other`), { status: 10, stderr: /no package me\/other/ })
  t.match(await push('-m', 'm'), { status: 0 }, 'a revision in layout 1 is another package')
  t.match(await bobbin.try('resolve', target), { status: 0 })
})

t.test('a key with = is written with == (S194)', async t => {
  const { at, bobbin, target, push } = fixture(t)
  await push('-m', 'one')
  const file = at('year=2026/new', 'new')
  const edit = (...args: string[]) => bobbin.try('edit', target, '--push', ...args)
  const added = await edit('--add', `year==2026/x=${file}`, '--add', `=====${file}`, '--add', `plain=${file}`)
  t.equal(added.status, 0, added.stderr)
  t.match(await bobbin.text('ls', '-R', target), '==\nc\nimages/1.jpg\nmasks/1.jpg\nplain\nyear=2026/x\n')
  for (const wrong of ['a', '=b', 'a=', 'a==b', '===='])
    t.match(await edit('--add', wrong), {
      status: 2,
      stderr: /write it as --add KEY=FILE, with == for each = of the key/,
    })
})

t.test('a copy of a damaged object is refused, and nothing is published (S152)', async t => {
  const { folder, bobbin, dir, target, push } = fixture(t)
  await push('-m', 'first')
  // From a folder to a folder, files are what it is about.
  const first = await bobbin.json<Revision>('resolve', target)
  const copied = await bobbin.json<Revision>('copy', target, join(folder, 'other'))
  t.equal(copied.topHash, first.topHash)
  t.match(await bobbin.try('verify', `${folder}/other/me/pkg`, dir), { status: 0 })
  t.equal(readFileSync(join(folder, 'other/me/pkg/c'), 'utf8'), 'c')
  writeFileSync(join(folder, 'registry/me/pkg/c'), 'C')
  const damaged = await bobbin.try('copy', target, join(folder, 'third'), '--cache', join(folder, 'cache-2'))
  t.equal(damaged.status, 13, damaged.stderr)
  t.match(await bobbin.try('resolve', `${folder}/third/me/pkg`), { status: 10 }, 'nothing was published')
})

t.test("a name alone is looked for in quilt3's registries (S155)", async t => {
  const { folder, at, dir } = fixture(t)
  const data = join(folder, 'data')
  const bobbin = new Bobbin(join(folder, 'cache'), {
    ...{ BOBBIN_CONFIG: undefined, BOBBIN_REGISTRY: undefined, HOME: folder, XDG_CONFIG_HOME: folder },
    XDG_DATA_HOME: data,
  })
  const local = join(data, 'Quilt/packages')
  const remote = join(folder, 'remote')
  t.match(await bobbin.try('resolve', 'me/pkg'), { status: 2, stderr: /no registry for/ })
  await bobbin.text('push', dir, `${local}/loc/only`, '-m', 'local')
  t.match(await bobbin.json('resolve', 'loc/only'), { registry: `file://${local}` }, 'no remote one is configured')
  t.match(
    await bobbin.try('push', dir, 'me/pkg'),
    { status: 2, stderr: /no registry for/ },
    'which nothing is written to',
  )

  const config = at('data/Quilt/config.yml', `navigator_url:\ndefault_remote_registry: "file://${remote}" # ours\n`)
  await bobbin.text('push', dir, 'me/pkg', '-m', 'remote')
  t.match(await bobbin.json('resolve', 'me/pkg'), { registry: `file://${remote}` })
  t.equal((await bobbin.text('packages')).trim(), 'me/pkg')
  const found = await bobbin.try('ls', 'loc/only')
  t.match(found, { status: 0, stderr: /loc\/only is not in file:.*remote, but in quilt3's local registry/ })
  const noted = /loc\/only is not in file:.*remote, but in quilt3's local registry/
  const logged = await bobbin.try('log', 'loc/only', '--json')
  t.match(logged, { status: 0, stderr: noted })
  const { topHash } = JSON.parse(logged.stdout) as { topHash: string }
  t.match(await bobbin.try('log', 'loc/only', '--no-messages', '--limit', '1'), { status: 0, stderr: noted })
  t.match(await bobbin.try('diff', 'me/pkg', 'loc/only'), { status: 0, stderr: noted }, 'the second of two')
  const asked = await bobbin.try('delete', 'loc/only')
  t.match(asked, { status: 2, stderr: /pass --yes to delete all revisions of loc\/only in file:.*Quilt\/packages/ })
  t.match(asked.stderr, noted)
  t.match(await bobbin.try('delete', `loc/only@${topHash}`, '--yes'), { status: 0, stderr: noted })
  t.match(await bobbin.try('log', 'loc/only'), { status: 10, stderr: /no package loc\/only in file:.*remote/ })
  t.match(await bobbin.try('delete', 'loc/only', '--yes'), { status: 10, stderr: /in file:.*remote/ })
  t.match(await bobbin.try('ls', 'me/nope'), { status: 10, stderr: /no package me\/nope in file:.*remote/ })
  t.match(
    await bobbin.try('ls', 'loc/only', '--registry', remote),
    { status: 10 },
    'a registry that was named is the only one',
  )

  writeFileSync(config, 'default_remote_registry: [')
  t.match(await bobbin.try('ls', 'me/pkg'), { status: 2, stderr: /quilt3's .*config\.yml cannot be read/ })
  const user = process.getuid?.()
  await t.test(
    "another user's file says nothing",
    { skip: user !== 0 && 'only root can give a file away' },
    async t => {
      writeFileSync(config, `default_remote_registry: file://${remote}\n`)
      chownSync(config, 65_534, 65_534)
      t.match(await bobbin.try('ls', 'me/pkg'), { status: 10 }, 'it is looked for in the local registry')
    },
  )
})

t.test('a subtree lies at the destination, and the manifest in the local registry (S156)', async t => {
  const { folder, dir, target } = fixture(t)
  const env = { BOBBIN_CONFIG: undefined, HOME: folder, XDG_CONFIG_HOME: folder, XDG_DATA_HOME: join(folder, 'data') }
  const bobbin = new Bobbin(join(folder, 'cache'), env)
  const { topHash } = await bobbin.json<Revision>('push', dir, target, '-m', 'm')
  const [out, single] = [join(folder, 'out'), join(folder, 'single')]
  await bobbin.text('install', target, out, '--path', 'images/', '--strip-path', '--register')
  t.strictSame(readdirSync(out), ['1.jpg'])
  await bobbin.text('install', target, single, '--path', 'masks/1.jpg', '--strip-path')
  t.equal(readFileSync(join(single, '1.jpg'), 'utf8'), 'masks/1.jpg')
  for (const path of [['--path', 'images/*'], [], ['--path', 'images', '--path', 'masks']]) {
    const outcome = await bobbin.try('install', target, join(folder, 'none'), ...path, '--strip-path')
    t.match(outcome, { status: 2, stderr: /--strip-path needs exactly one --path/ })
  }
  const local = join(folder, 'data/Quilt/packages')
  t.equal((await bobbin.json<Revision>('resolve', `${local}/me/pkg`)).topHash, topHash, 'all of it')
})
