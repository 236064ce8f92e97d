/** Which code a run had: real repositories, with what people do to theirs. */
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findCode, identifyCode, restoreCode } from '../../../../cli/run/code.js'
import { runProgram } from '../../../support/cli.js'
import { testFolder } from '../../../support/daemon.js'

const AUTHOR = ['-c', 'user.name=Test', '-c', 'user.email=test@test.invalid']

async function git(folder: string, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await runProgram('git', ['-C', folder, ...AUTHOR, ...args])
  if (status !== 0) throw new Error(`git ${args.join(' ')}: ${stderr}`)
  return stdout.trim()
}

/** A repository with one commit. */
async function repository(folder: string, files: Readonly<Record<string, string>>): Promise<string> {
  mkdirSync(folder, { recursive: true })
  await git(folder, 'init', '--quiet')
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
  await git(folder, 'add', '--all')
  await git(folder, 'commit', '--quiet', '-m', 'code')
  return folder
}

async function identify(t: Test, folder: string) {
  return (await identifyCode(folder, { scratch: testFolder(t) }))!
}

t.test('identifyCode sees an edit of the same size in the second of the commit', async t => {
  const folder = await repository(join(testFolder(t), 'code'), { 'a.txt': 'one' })
  // By the clock, without waiting for the moment.
  const second = 1_700_000_000
  await git(folder, 'config', 'core.trustctime', 'false')
  utimesSync(join(folder, 'a.txt'), second, second)
  await git(folder, 'add', '--all')
  writeFileSync(join(folder, 'a.txt'), 'two')
  utimesSync(join(folder, 'a.txt'), second, second)
  utimesSync(join(folder, '.git/index'), second, second)
  const { identity } = await identify(t, folder)
  t.equal(identity.isDirty, true)
  t.match(await git(folder, 'status', '--porcelain'), /a\.txt/, 'as git itself does')
})

t.test('identifyCode makes the same diff whatever people have set', async t => {
  const folder = await repository(join(testFolder(t), 'code'), {
    'a.txt': `${'line\n\n'.repeat(30)}`,
    'moved.txt': 'text\n'.repeat(20),
    'é "x".txt': 'old\n',
  })
  appendFileSync(join(folder, 'a.txt'), 'more \n')
  writeFileSync(join(folder, 'a.txt'), readFileSync(join(folder, 'a.txt'), 'utf8').replace('line', 'first'))
  writeFileSync(join(folder, 'é "x".txt'), 'new\n')
  writeFileSync(join(folder, 'binary'), Buffer.from([0, 1, 2, 255]))
  renameSync(join(folder, 'moved.txt'), join(folder, 'here.txt'))
  const plain = await identify(t, folder)
  writeFileSync(join(folder, '.git/order'), '*.txt\n')
  for (const setting of [
    'diff.noprefix=true',
    'diff.mnemonicPrefix=true',
    'diff.context=0',
    'diff.interHunkContext=50',
    'diff.renames=copies',
    'diff.suppressBlankEmpty=true',
    'diff.wsErrorHighlight=all',
    'diff.orderFile=.git/order',
    'diff.algorithm=patience',
    'diff.external=false',
    'color.ui=always',
    'color.diff=always',
    'core.quotePath=false',
    'core.abbrev=8',
  ])
    await git(folder, 'config', ...setting.split('='))
  const set = await identify(t, folder)
  t.equal(set.identity.tree, plain.identity.tree)
  t.equal(String(set.diff), String(plain.diff))
  t.equal(set.identity.diffSha256, plain.identity.diffSha256)
})

t.test('restoreCode brings the recorded bytes whatever people have set', async t => {
  const home = testFolder(t)
  const before = process.env.HOME
  process.env.HOME = home
  t.teardown(() => {
    process.env.HOME = before
  })
  const files = { 'lf.txt': 'a\n\nb \n', 'crlf.txt': 'a\r\nb\r\n', 'run.sh': 'true\n', 'gone.txt': 'gone\n' }
  const folder = await repository(join(home, 'code'), { ...files, '.gitattributes': 'lf.txt text\n' })
  const changed = {
    'lf.txt': 'a\n\nb \nc \t \n',
    'crlf.txt': 'a\r\nb\r\nc\r\n',
    'new.txt': ' \t x \n\n\n',
    binary: 'a\0b\r\n',
  }
  for (const [name, text] of Object.entries(changed)) writeFileSync(join(folder, name), text)
  chmodSync(join(folder, 'run.sh'), 0o755)
  rmSync(join(folder, 'gone.txt'))
  const { identity, diff } = await identify(t, folder)
  const diffPath = join(home, 'source.diff')
  writeFileSync(diffPath, diff!)
  writeFileSync(
    join(home, '.gitconfig'),
    '[core]\nautocrlf = true\neol = crlf\nsafecrlf = true\n[apply]\nwhitespace = fix\nignoreWhitespace = change\n',
  )
  const target = join(home, 'restored')
  await restoreCode(identity, diffPath, target, { isTrusted: true })
  for (const [name, text] of Object.entries(changed)) t.equal(readFileSync(join(target, name), 'utf8'), text, name)
  t.equal(await git(target, 'status', '--porcelain', '-z', '--', 'gone.txt', 'run.sh'), 'D  gone.txt\0M  run.sh\0')
  t.equal((await identify(t, target)).identity.tree, identity.tree, 'which is the same code again')
})

t.test('restoreCode asks the remote when the folder has not got the commit any more', async t => {
  const folder = testFolder(t)
  const remote = await repository(join(folder, 'remote'), { 'a.txt': 'one' })
  const code = join(folder, 'code')
  await git(folder, 'clone', '--quiet', remote, code)
  const { identity } = await identify(t, code)
  rmSync(code, { recursive: true })
  await repository(code, { 'a.txt': 'another' })
  await restoreCode(identity, '/nowhere', join(folder, 'another'), { isTrusted: true })
  t.equal(readFileSync(join(folder, 'another/a.txt'), 'utf8'), 'one')
  mkdirSync(join(folder, 'empty/.git'), { recursive: true })
  await restoreCode({ ...identity, folder: join(folder, 'empty') }, '/nowhere', join(folder, 'broken'), {
    isTrusted: true,
  })
  t.equal(readFileSync(join(folder, 'broken/a.txt'), 'utf8'), 'one')
  await t.rejects(restoreCode({ ...identity, remote: null }, '/nowhere', join(folder, 'none'), { isTrusted: true }), {
    code: 'OBJECT_GONE',
  })
  const lost = { ...identity, commit: '1'.repeat(40) }
  await t.rejects(restoreCode(lost, '/nowhere', join(folder, 'lost'), { isTrusted: true }), {
    code: 'OBJECT_GONE',
    message: /no commit 1{40} in .*remote/,
  })
})

t.test('identifyCode takes a folder of any name', async t => {
  const folder = await repository(join(testFolder(t), 'a:b "c" é'), { 'a.txt': 'one' })
  writeFileSync(join(folder, 'a.txt'), 'two')
  t.match((await identify(t, folder)).identity, { folder, isDirty: true })
})

t.test('identifyCode looks at files that git was told to overlook', async t => {
  const folder = await repository(join(testFolder(t), 'code'), { 'a.txt': 'a', 'b.txt': 'b', 'c.txt': 'c' })
  await git(folder, 'update-index', '--assume-unchanged', 'a.txt', 'c.txt')
  await git(folder, 'update-index', '--skip-worktree', 'b.txt', 'c.txt')
  t.match((await identify(t, folder)).identity, { isDirty: false })
  for (const name of ['a.txt', 'b.txt', 'c.txt']) {
    writeFileSync(join(folder, name), 'changed')
    t.match(String((await identify(t, folder)).diff), `+++ b/${name}`)
  }
  rmSync(join(folder, 'a.txt'))
  t.match(String((await identify(t, folder)).diff), 'deleted file')
  t.equal(await git(folder, 'status', '--porcelain'), '', 'git is still told so')
})

t.test('identifyCode takes nothing for deleted that a sparse checkout has left out', async t => {
  const origin = await repository(join(testFolder(t), 'origin'), { 'a.txt': 'a' })
  for (const name of ['in', 'out']) {
    mkdirSync(join(origin, name))
    writeFileSync(join(origin, name, 'x.txt'), 'x')
  }
  await git(origin, 'add', '--all')
  await git(origin, 'commit', '--quiet', '-m', 'folders')
  for (const mode of ['--sparse-index', '--no-sparse-index']) {
    const folder = join(testFolder(t), 'code')
    await git(origin, 'clone', '--quiet', origin, folder)
    await git(folder, 'sparse-checkout', 'set', '--cone', mode, 'in')
    const index = readFileSync(join(folder, '.git/index'))
    t.notOk(existsSync(join(folder, 'out')))
    const { identity } = await identify(t, folder)
    t.match(identity, { isDirty: false, tree: await git(origin, 'rev-parse', 'HEAD^{tree}') })
    writeFileSync(join(folder, 'in/x.txt'), 'changed')
    mkdirSync(join(folder, 'out'))
    writeFileSync(join(folder, 'out/new.txt'), 'new')
    const { diff } = await identify(t, folder)
    t.match(String(diff), '+++ b/in/x.txt')
    t.match(String(diff), '+++ b/out/new.txt', 'wherever it is')
    t.notMatch(String(diff), 'deleted file')
    t.same(readFileSync(join(folder, '.git/index')), index)
  }
})

/** A repository with one below it, and that with another. */
async function nested(folder: string): Promise<string> {
  const add = ['-c', 'protocol.file.allow=always', 'submodule', '--quiet', 'add', '--']
  await repository(join(folder, 'leaf'), { 'leaf.txt': 'leaf' })
  await repository(join(folder, 'lib'), { 'lib.txt': 'lib' })
  await git(join(folder, 'lib'), ...add, join(folder, 'leaf'), 'leaf')
  await git(join(folder, 'lib'), 'commit', '--quiet', '-m', 'leaf')
  const code = await repository(join(folder, 'code'), { 'a.txt': 'a' })
  await git(code, ...add, join(folder, 'lib'), 'lib')
  await git(code, '-c', 'protocol.file.allow=always', 'submodule', '--quiet', 'update', '--init', '--recursive')
  await git(code, 'commit', '--quiet', '-m', 'lib')
  return code
}

t.test(
  'identifyCode refuses a submodule with changes, since it could record no more of it than its commit',
  async t => {
    const code = await nested(testFolder(t))
    t.match((await identify(t, code)).identity, { isDirty: false })
    await git(code, 'config', 'submodule.lib.ignore', 'all')
    await git(code, 'config', 'status.showUntrackedFiles', 'no')
    for (const [name, text] of [
      ['lib/lib.txt', 'LIB'],
      ['lib/new.txt', 'new'],
      ['lib/leaf/leaf.txt', 'LEAF'],
    ] as const) {
      writeFileSync(join(code, name), text)
      await t.rejects(identify(t, code), { code: 'INVALID_ARGUMENT', message: /commit inside it/ })
      await git(join(code, 'lib'), 'submodule', '--quiet', 'foreach', 'git checkout --quiet .')
      await git(join(code, 'lib'), 'clean', '--quiet', '--force')
      await git(join(code, 'lib'), 'checkout', '--quiet', '.')
    }
    writeFileSync(join(code, 'lib/lib.txt'), 'LIB')
    await git(join(code, 'lib'), 'commit', '--quiet', '--all', '-m', 'inside')
    const { identity, diff } = await identify(t, code)
    t.match(identity, { isDirty: true })
    t.match(String(diff), `+Subproject commit ${await git(join(code, 'lib'), 'rev-parse', 'HEAD')}`)
  },
)

t.test('restoreCode brings submodules, from where the code is from', async t => {
  const folder = testFolder(t)
  const code = await nested(folder)
  const clean = await identify(t, code)
  // Nobody but this folder has that commit.
  writeFileSync(join(code, 'lib/lib.txt'), 'LIB')
  await git(join(code, 'lib'), 'commit', '--quiet', '--all', '-m', 'inside')
  const { identity, diff } = await identify(t, code)
  const diffPath = join(folder, 'source.diff')
  writeFileSync(diffPath, diff!)
  const restored = join(folder, 'restored')
  await restoreCode(identity, diffPath, restored, { isTrusted: true })
  t.equal(readFileSync(join(restored, 'lib/lib.txt'), 'utf8'), 'LIB')
  t.equal(readFileSync(join(restored, 'lib/leaf/leaf.txt'), 'utf8'), 'leaf')
  t.equal((await identify(t, restored)).identity.tree, identity.tree)

  const bare = join(folder, 'bare')
  await git(code, 'clone', '--quiet', code, bare)
  await restoreCode({ ...clean.identity, folder: bare }, '/nowhere', join(folder, 'again'), { isTrusted: true })
  t.equal(readFileSync(join(folder, 'again/lib/leaf/leaf.txt'), 'utf8'), 'leaf', 'it has none of them: from their own')
  const elsewhere = { ...clean.identity, folder: '/nowhere', remote: code }
  await t.rejects(
    restoreCode(elsewhere, '/nowhere', join(folder, 'refused'), { isTrusted: true }),
    { code: 'OBJECT_GONE', message: /file/ },
    'a record from elsewhere names no folders here',
  )
})

t.test('restoreCode ends when it is interrupted', async t => {
  const folder = testFolder(t)
  const { identity } = await identify(t, await repository(join(folder, 'code'), { 'a.txt': 'a' }))
  const restored = restoreCode(identity, '/nowhere', join(folder, 'restored'), {
    isTrusted: true,
    signal: AbortSignal.abort(),
  })
  await t.rejects(restored, { code: 'INTERRUPTED' })
})

t.test(
  'a repository that came with a package starts none of its programs when a record is looked for in it (S76)',
  async t => {
    const folder = testFolder(t)
    const theirs = await repository(join(folder, 'package'), { 'a.txt': 'a\n' })
    const { identity } = await identify(t, theirs)
    const ran = join(folder, 'ran')
    const program = join(folder, 'program')
    writeFileSync(program, `#!/bin/sh\ntouch ${ran}\nexit 1\n`, { mode: 0o755 })
    // What is missing is fetched by a program that the repository names.
    const fetching = ['[extensions]', 'partialClone = origin', '[remote "origin"]', 'promisor = true']
    const ways = [
      ['url = ssh://host/a', '[core]', `sshCommand = ${program}`, `fsmonitor = ${program}`],
      [`url = ${folder}`, `uploadpack = ${program}`],
      ['url = https://host/a', `vcs = ext`, '[protocol "ext"]', 'allow = always'],
    ]
    const config = readFileSync(join(theirs, '.git/config'), 'utf8')
    const before = process.cwd()
    t.teardown(() => process.chdir(before))
    process.chdir(theirs)
    for (const [i, way] of ways.entries()) {
      writeFileSync(join(theirs, '.git/config'), [config, ...fetching, ...way, ''].join('\n'))
      t.equal((await findCode({ ...identity, commit: 'f'.repeat(40) })).here, undefined)
      await restoreCode(identity, '/nowhere', join(folder, `restored${i}`), { isTrusted: false })
      t.notOk(existsSync(ran), way.join(' '))
      rmSync(ran, { force: true })
    }
  },
)

t.test("filters that a stranger's files pass through on their way have none of the user's keys (S76)", async t => {
  const folder = testFolder(t)
  const code = await repository(join(folder, 'code'), { '.gitattributes': '* filter=large\n', 'a.txt': 'a\n' })
  const { identity } = await identify(t, code)
  // As git-lfs does, a filter asks git for passwords, and ssh, for the host that the repository names.
  const seen = join(folder, 'seen')
  const config = join(folder, 'config')
  const smudge = `(echo fill; printf 'protocol=https\\\\nhost=h\\\\n\\\\n' | git credential fill; sh -c \\"$GIT_SSH_COMMAND echo key\\") >> ${seen} 2>&1; cat`
  const helper = `!echo username=u; echo password=secret; #`
  const filters = ['[filter "large"]', `smudge = "${smudge}"`, '[credential]', `helper = "${helper}"`, '']
  writeFileSync(config, filters.join('\n'))
  const before = [process.cwd(), process.env.HOME] as const
  t.teardown(() => process.chdir(before[0]))
  t.teardown(() => {
    process.env.HOME = before[1]
  })
  process.env.HOME = folder
  renameSync(config, join(folder, '.gitconfig'))
  process.chdir(code)
  await restoreCode(identity, '/nowhere', join(folder, 'restored'), { isTrusted: false })
  t.match(readFileSync(seen, 'utf8'), /^fill/, 'it ran')
  t.notMatch(readFileSync(seen, 'utf8'), /secret|^key/m)
  rmSync(seen)
  await restoreCode(identity, '/nowhere', join(folder, 'trusted'), { isTrusted: true })
  t.match(readFileSync(seen, 'utf8'), /secret[\s\S]*^key/m, 'as with git clone')
})
