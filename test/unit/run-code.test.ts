/** Which code a run had: real repositories, with what people do to theirs. */
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { identifyCode, restoreCode } from '../../cli/run/code.js'
import { runProgram } from '../support/cli.js'
import { testFolder } from '../support/daemon.js'

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
  await restoreCode(identity, diffPath, target)
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
  await restoreCode(identity, '/nowhere', join(folder, 'another'))
  t.equal(readFileSync(join(folder, 'another/a.txt'), 'utf8'), 'one')
  mkdirSync(join(folder, 'empty/.git'), { recursive: true })
  await restoreCode({ ...identity, folder: join(folder, 'empty') }, '/nowhere', join(folder, 'broken'))
  t.equal(readFileSync(join(folder, 'broken/a.txt'), 'utf8'), 'one')
  await t.rejects(restoreCode({ ...identity, remote: null }, '/nowhere', join(folder, 'none')), { code: 'OBJECT_GONE' })
  const lost = { ...identity, commit: '1'.repeat(40) }
  await t.rejects(restoreCode(lost, '/nowhere', join(folder, 'lost')), {
    code: 'OBJECT_GONE',
    message: /nor at .*remote/,
  })
})

t.test('identifyCode takes a folder of any name', async t => {
  const folder = await repository(join(testFolder(t), 'a:b "c" é'), { 'a.txt': 'one' })
  writeFileSync(join(folder, 'a.txt'), 'two')
  t.match((await identify(t, folder)).identity, { folder, isDirty: true })
})
